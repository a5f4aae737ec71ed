"""A row for every image of a batch job: what the model says about it, or why it could not be read.

::

    multiclass   {"file", "index", "label", "score", "top": [{"index", "label", "score"}, ...], "error", "notes"}
    multilabel   {"file", "positive": [names], "scores": [of every label], "error", "notes"}
    regression   {"file", "values": [of every output], "error", "notes"}
    features     {"file", "length", "norm", "features": [...], "error", "notes"}

A row is plain: JSON holds it. Of a bad image all answers are null. `cells` is the same row as a line of a CSV.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from densenet_deploy.records import write_json
from densenet_deploy.runtime.classifier import Classifier, Prediction
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.preprocess import PreparedImage

Row = Mapping[str, Any]

_ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "multiclass": ("index", "label", "score", "top"),
    "multilabel": ("positive", "scores"),
    "regression": ("values",),
    "features": ("length", "norm", "features"),
}


@dataclass(frozen=True)
class RowLayout:
    """What the rows of a job hold.

    Attributes:
        task: one of `manifest.TASKS`.
        outputs: names of the model's outputs in order; of features, none.
        top_k: of multiclass, how many classes a row lists.
        thresholds: of multilabel, one for all labels or one per label.
    """

    task: str
    outputs: tuple[str, ...]
    top_k: int = 0
    thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, classifier: Classifier, count: int, top_k: int) -> Self:
        """Return the layout for a model with `count` outputs."""
        meaning, answer = classifier.meaning, classifier.answer(np.zeros(count, np.float32), count)
        names = {one.index: one.name for one in answer.top} | {one.index: one.name for one in answer.values}
        return cls(
            meaning.task,
            tuple(names[index] for index in sorted(names)),
            min(top_k, count) if meaning.task == "multiclass" else 0,
            meaning.thresholds if meaning.task == "multilabel" else (),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of a row, in order."""
        return ("file", *_ANSWERS[self.task], "error", "notes")

    def answered(self, file: str, answer: Prediction) -> Row:
        """Return the row of an image that the model answered; of a multilabel model the answer lists every label."""
        return {"file": file, **self._answers(answer), "error": None, "notes": list(answer.notes)}

    def refused(self, file: str, error: str) -> Row:
        """Return the row of an image that could not be read."""
        return {"file": file, **dict.fromkeys(_ANSWERS[self.task]), "error": error, "notes": []}

    def csv_columns(self) -> list[str]:
        """Return the header of a CSV: lists of fixed length have a column for each item.

        The index follows an output's name that is already that of another column: `error (3)`.
        """
        ranks = [f"top{rank}_{fact}" for rank in range(2, self.top_k + 1) for fact in ("index", "label", "score")]
        taken = {"file", *_ANSWERS[self.task], "error", "notes"}
        outputs = [f"{name} ({index})" if name in taken else name for index, name in enumerate(self.outputs)]
        answers = {
            "multiclass": ["index", "label", "score", *ranks],
            "multilabel": ["positive", *outputs],
            "regression": outputs,
            "features": ["length", "norm", "features"],
        }
        return ["file", *answers[self.task], "error", "notes"]

    def cells(self, row: Row) -> list[object]:
        """Return a row as cells under `csv_columns`: an empty one for null, JSON for a list of any length."""
        if row["error"] is not None:
            answers: Sequence[object] = [None] * (len(self.csv_columns()) - 3)
        elif self.task == "multiclass":
            answers = [score[fact] for score in row["top"] for fact in ("index", "label", "score")]
        elif self.task == "multilabel":
            answers = [write_json(row["positive"]), *row["scores"]]
        elif self.task == "regression":
            answers = row["values"]
        else:
            answers = [row["length"], row["norm"], write_json(row["features"])]
        return [row["file"], *answers, row["error"], "; ".join(row["notes"])]

    def _answers(self, answer: Prediction) -> dict[str, object]:
        if self.task == "multiclass":
            top = [score.to_json() for score in answer.top]
            return {**top[0], "top": top}
        if self.task == "multilabel":
            scores = sorted(answer.top, key=lambda score: score.index)
            positive = [score.name for score in scores if score.positive]
            return {"positive": positive, "scores": [score.score for score in scores]}
        if self.task == "regression":
            return {"values": [number.value for number in answer.values]}
        assert answer.features is not None
        vector = answer.features
        return {"length": vector.length, "norm": vector.norm, "features": vector.values.tolist()}


@dataclass(frozen=True)
class PredictionRows:
    """Makes rows of what a model says about images; see `shard_worker.Answers`."""

    classifier: Classifier
    layout: RowLayout

    def of_batch(self, files: Sequence[str], images: Sequence[PreparedImage], outputs: Array) -> list[Row]:
        """Return a row for each image."""
        layout = self.layout
        count = layout.top_k or len(layout.outputs) or 1
        return [
            layout.answered(file, self.classifier.answer(row, count, image.notes))
            for file, image, row in zip(files, images, outputs, strict=True)
        ]

    def refused(self, file: str, error: str) -> Row:
        """Return the row of an image that could not be read."""
        return self.layout.refused(file, error)

"""Images in, named classes out.

>>> classify = Classifier.open("digits.onnx")
>>> print(classify("held_out/7/0031.png", top_k=2))
 99.6 %  7
  0.4 %  4
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Final, Self, overload

import numpy as np

from densenet_deploy.artifacts import StrPath, os_errors_about
from densenet_deploy.errors import DataError, FeedError, ModelFileError, UsageError
from densenet_deploy.manifest import ImageShape, Preprocessing
from densenet_deploy.notebook import html_table, notes_html
from densenet_deploy.records import fields_to_plain
from densenet_deploy.runtime.batching import fixed_batch, image_shape, run_batched
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.images import ImageSource
from densenet_deploy.runtime.meaning import OutputMeaning, name_of_output, require_labels, shared_labels
from densenet_deploy.runtime.preprocess import PreparedImage, read_input
from densenet_deploy.runtime.runner import ModelSource, Runner, RunnerOptions, open_runner

_LARGEST_BATCH: Final = 32
_VERDICTS: Final = {None: "", True: "yes", False: "no"}

Classifiable = ImageSource | PreparedImage
"""What a `Classifier` answers: an image, or an input that was prepared before."""


@dataclass(frozen=True)
class Score:
    """One class or label: its `index` among the outputs and its `score` in 0..1.

    Attributes:
        label: its name, if the model has labels.
        score: softmax of a class, sigmoid of a label.
        positive: of a label, whether its score reaches its threshold; None of a class.
        is_shared: whether another output has the same label, so that `name` shows the index too.
    """

    index: int
    label: str | None
    score: float
    positive: bool | None = None
    is_shared: bool = field(default=False, metadata={"json": False})

    def to_json(self) -> dict[str, Any]:
        """Return the score with plain types; a class has no `positive`."""
        facts = fields_to_plain(self)
        return facts if self.positive is not None else {name: facts[name] for name in ("index", "label", "score")}

    def __str__(self) -> str:
        verdict = "" if self.positive is None else f"{_VERDICTS[self.positive]:5}"
        return f"{100 * self.score:5.1f} %  {verdict}{self.name}"

    @property
    def name(self) -> str:
        """The label in printable characters, `crane (134)` if other classes are called so, or `class 7`."""
        if self.label is None:
            return f"class {self.index}"
        return name_of_output(self.label, self.index, is_shared=self.is_shared)


@dataclass(frozen=True)
class Number:
    """One number of a regression: its `index` among the outputs, and its `label` if the model has labels."""

    index: int
    label: str | None
    value: float
    is_shared: bool = field(default=False, metadata={"json": False})

    def __str__(self) -> str:
        return f"{self.value:.6g}  {self.name}"

    @property
    def name(self) -> str:
        """The label in printable characters, `age (1)` if other outputs are called so, or `output 7`."""
        if self.label is None:
            return f"output {self.index}"
        return name_of_output(self.label, self.index, is_shared=self.is_shared)


@dataclass(frozen=True)
class Vector:
    """Features: how many, their Euclidean norm, and the `values`, which JSON leaves out."""

    length: int
    norm: float
    values: Array = field(repr=False, compare=False, metadata={"json": False})

    def __str__(self) -> str:
        return f"{self.length} features, norm {self.norm:.6g}"


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image. It prints as a table, also in a notebook.

    >>> with Classifier.open("digits.onnx") as classify:
    ...     print([answer.label for answer in classify("held_out/7/0031.png", top_k=2).top])
    ['7', '4']

    Attributes:
        top: the best classes or labels, best first (of equal scores the lower index first).
        values: of a regression, the numbers.
        features: of a model that returns features, the vector.
        notes: what was lost in reading the image.
    """

    top: tuple[Score, ...] = ()
    values: tuple[Number, ...] = ()
    features: Vector | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with plain types, ready for `json.dumps`: what the task does not have is left out."""
        facts = fields_to_plain(self)
        return {name: value for name, value in facts.items() if name in ("top", "notes") or value}

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.top, *self.values, *([self.features] if self.features else []))))

    def _repr_html_(self) -> str:
        """Return a table for a notebook, with the notes below it."""
        with_verdict = any(score.positive is not None for score in self.top)
        rows = [(score.name, f"{score.score:.1%}", _VERDICTS[score.positive]) for score in self.top]
        rows += [(number.name, f"{number.value:.6g}", "") for number in self.values]
        rows += [("features", str(self.features), "")] if self.features else []
        columns = 3 if with_verdict else 2
        head = ("class", "score", "positive")[:columns] if self.top else ()
        return html_table(head, [row[:columns] for row in rows], (1,)) + notes_html(self.notes)


class Classifier:
    """Answer images with a runner, which it owns and closes. Safe to use from many threads.

    >>> with Classifier.open("digits.onnx") as classify:
    ...     classify("held_out/7/0031.png").top[0].label
    '7'

    The answer is that of the model's task (see `runtime.meaning`): classes, labels with a sigmoid and a threshold each,
    numbers, or a feature vector.

    Args:
        runner: of a model with one image input.
        preprocessing: how images are prepared; None takes the manifest's.
        labels: names of the classes in the order of the outputs, or the path of a text file; None: the manifest's.
        task: multiclass, multilabel, regression or features; None takes what the manifest says, or the graph shows.
        fast: decode JPEGs at a reduced scale and resize from averages of blocks: faster, and not exact
            (see docs/how-to/runner.md).

    Attributes:
        preprocessing: how images are prepared.
        fast: whether they are decoded fast.
        labels: names of the classes, or empty.
        meaning: which output answers, and what it means.
        assumptions: sentences on what had to be assumed, because the model does not state it.

    Raises:
        ModelFileError: if the model does not take images, or has no output of one row of numbers per image.
        FeedError: if it takes images of another shape than the preprocessing produces.
        UsageError: if the number of labels is not that of the classes.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | StrPath | None = None,
        task: str | None = None,
        fast: bool = False,
    ) -> None:
        self._runner, self.fast = runner, fast
        shape, manifest = image_shape(runner), runner.manifest
        self.labels = (manifest.labels if manifest else ()) if labels is None else _labels_from(labels)
        self._shared = shared_labels(self.labels)
        self.meaning = OutputMeaning.of(runner, self.labels, task)
        known = preprocessing or (manifest.preprocessing if manifest else None)
        taken = str(runner.inputs[0].dtype)
        self.preprocessing: Preprocessing = dataclasses.replace(known or Preprocessing.for_shape(shape), dtype=taken)
        assumed = manifest.assumed if manifest else ("how to prepare images",)
        sentence = f"the model does not state {', '.join(assumed)}: assumed is {self.preprocessing}"
        self.assumptions = (*((sentence,) if assumed and preprocessing is None else ()), *self.meaning.assumptions)
        _check_shape(shape, self.preprocessing)
        require_labels(self.labels, self.meaning.classes)

    @classmethod
    def open(
        cls,
        source: ModelSource,
        backend: str | None = None,
        device: str | None = None,
        options: RunnerOptions | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | StrPath | None = None,
        task: str | None = None,
        fast: bool = False,
    ) -> Self:
        """Open a model and classify with it. Errors are those of `open_runner` and of the class.

        Args:
            source: what `open_runner` takes.
            backend: as for `open_runner`.
            device: as for `open_runner`.
            options: as for `open_runner`.
            preprocessing: see the class.
            labels: see the class.
            task: see the class.
            fast: see the class.
        """
        runner = open_runner(source, backend, device, options)
        try:
            return cls(runner, preprocessing=preprocessing, labels=labels, task=task, fast=fast)
        except BaseException:
            runner.close()
            raise

    @overload
    def classify(
        self, image: list[Classifiable] | tuple[Classifiable, ...], top_k: int = ...
    ) -> tuple[Prediction, ...]: ...

    @overload
    def classify(self, image: Classifiable, top_k: int = ...) -> Prediction: ...

    def classify(
        self, image: Classifiable | list[Classifiable] | tuple[Classifiable, ...], top_k: int = 5
    ) -> Prediction | tuple[Prediction, ...]:
        """Return what the model says about an image, or about each in a list or tuple.

        >>> classify = Classifier.open("digits.onnx")
        >>> [answer.top[0].label for answer in classify(["held_out/7/0031.png", np.zeros((32, 32, 3), np.uint8)])]
        ['7', '1']

        Args:
            image: a path, the bytes of a file, an open binary file, a PIL image, an array or tensor of pixels (see
                `LoadedImage.from_array`), or what `prepare` made of one; or a list or tuple of these.
            top_k: how many classes or labels to return (all, if the model has fewer).

        Raises:
            UsageError: if `top_k` is less than 1.
            ImageError: if an image cannot be read.
            FeedError: if an array is not one of pixels in the model's channels.
        """
        if isinstance(image, (list, tuple)):
            return self.classify_batch(image, top_k)
        return self.classify_batch((image,), top_k)[0]

    __call__ = classify

    def prepare(self, image: ImageSource, *, threads: int = 1) -> PreparedImage:
        """Return an image as the model takes it, for `classify`: another thread can do that while the model runs.

        Args:
            image: what `classify` takes.
            threads: the most that resize a large image at the same time; `classify` takes as many as the model.

        Raises:
            ImageError: if the image cannot be read.
            FeedError: if an array is not one of pixels in the model's channels.
        """
        return read_input(image, self.preprocessing, fast=self.fast, threads=threads)

    def classify_batch(self, images: Sequence[Classifiable], top_k: int = 5) -> tuple[Prediction, ...]:
        """Classify several images, in batches. Errors as in `classify`."""
        _require_count(top_k)
        size = fixed_batch(self._runner) or _LARGEST_BATCH
        batches = (images[start : start + size] for start in range(0, len(images), size))
        return tuple(prediction for batch in batches for prediction in self._classified(batch, top_k))

    def logits(self, inputs: Array) -> Array:
        """Return the outputs (N, C) for a batch of inputs that `prepare` made.

        Raises:
            ModelFileError: if any is NaN or infinite, or there are not as many rows as images.
            UsageError: if a model that does not state its number of classes has another than there are labels.
        """
        return self.rows(run_batched(self._runner, inputs), len(inputs))

    def rows(self, outputs: Mapping[str, Array], images: int) -> Array:
        """Return the rows (N, C) that answer N `images` in the outputs of a run, by name. Errors as in `logits`."""
        output = outputs[self.meaning.output.name]
        if len(output) != images:
            why = f"holds {len(output)} rows for {images} images"
            raise ModelFileError(self.meaning.output.name, why, "export the model with a dynamic batch")
        rows = self.meaning.rows(output)
        require_labels(self.labels, rows.shape[1])
        return rows

    @functools.cached_property
    def classes(self) -> int:
        """How many classes, labels or numbers answer; a model that does not state it is run once, on zeros.

        Errors as in `logits`.
        """
        if self.meaning.classes is not None:
            return self.meaning.classes
        zeros = np.zeros((1, *self.preprocessing.input_shape), self.preprocessing.dtype)
        return int(self.logits(zeros).shape[1])

    def scores(self, logits: Array) -> Array:
        """Return the scores (C,) from 0 to 1 of one image's outputs (C,); see `OutputMeaning.scores`."""
        return self.meaning.scores(logits)

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _classified(self, images: Sequence[Classifiable], top_k: int) -> list[Prediction]:
        threads = self._runner.placement.threads
        ready = (one if isinstance(one, PreparedImage) else self.prepare(one, threads=threads) for one in images)
        prepared = list(ready)
        inputs = prepared[0].pixels[None] if len(prepared) == 1 else np.stack([image.pixels for image in prepared])
        rows = self.logits(inputs)
        return [self.answer(row, top_k, image.notes) for row, image in zip(rows, prepared, strict=True)]

    def answer(self, row: Array, top_k: int = 5, notes: tuple[str, ...] = ()) -> Prediction:
        """Return what a row of `logits` says about its image.

        Args:
            row: (C,).
            top_k: classes to list, the best first.
            notes: what was lost in reading the image.
        """
        if self.meaning.task == "features":
            return Prediction(features=Vector(len(row), float(np.linalg.norm(row)), row), notes=notes)
        if self.meaning.task == "regression":
            values = (
                Number(i, self._label(i), float(value), self._label(i) in self._shared) for i, value in enumerate(row)
            )
            return Prediction(values=tuple(values), notes=notes)
        return Prediction(self._top(row, top_k), notes=notes)

    def _top(self, logits: Array, top_k: int) -> tuple[Score, ...]:
        """Rank by logits, since scores far below the best underflow to equal zeros."""
        scores, best = self.scores(logits), np.argsort(-logits, kind="stable")[:top_k]
        verdicts = self.meaning.positive(scores).tolist() if self.meaning.task == "multilabel" else [None] * len(scores)
        return tuple(
            Score(i, self._label(i), float(scores[i]), verdicts[i], self._label(i) in self._shared)
            for i in best.tolist()
        )

    def _label(self, index: int) -> str | None:
        return self.labels[index] if self.labels else None


def _require_count(top_k: object) -> None:
    if not isinstance(top_k, Integral) or top_k < 1:
        raise UsageError(f"top_k={top_k!r}", "is not a number of classes", "ask for at least 1 class")


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a UTF-8 text file, one per line; a byte-order mark and Windows line ends are accepted.

    Raises:
        InputError: if the file does not exist.
        DataError: if it is empty, not UTF-8, JSON, or has a blank line before its end.
    """
    with os_errors_about(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(path, f"is not UTF-8 at byte {exc.start}", "save it as UTF-8 text") from exc
    if not text.strip():
        raise DataError(path, "is empty", "write one class name per line")
    if _is_json(text):
        raise DataError(path, "looks like JSON", "write one class name per line, in the order of the outputs")
    labels = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if "" in labels:
        raise DataError(path, f"line {labels.index('') + 1} is blank", "write one class name on every line")
    return labels


def _is_json(text: str) -> bool:
    """Whether a text is a JSON list or object with something in it: a class may be called "[", as characters are."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, (list, dict)) and bool(parsed)


def _labels_from(labels: Sequence[str] | StrPath) -> tuple[str, ...]:
    return read_labels(Path(labels)) if isinstance(labels, (str, os.PathLike)) else tuple(labels)


def _check_shape(shape: ImageShape, preprocessing: Preprocessing) -> None:
    pairs = zip(shape, preprocessing.shape, strict=True)
    if any(size not in (made, None) for size, made in pairs):
        made, taken = ("x".join("?" if size is None else str(size) for size in s) for s in (preprocessing.shape, shape))
        fix = "give preprocessing with the model's channels and image_size"
        raise FeedError("preprocessing", f"produces images of {made}, the model takes {taken}", fix)

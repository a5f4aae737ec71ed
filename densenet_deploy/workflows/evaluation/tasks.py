"""What `evaluate` does for each task: where the truth comes from, what is kept of the outputs, which figures follow.

A model of features has no right or wrong answers, and is refused.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np

from densenet_deploy.analysis.accuracy import TOP, Answers
from densenet_deploy.analysis.multilabel import LabelAnswers, macro
from densenet_deploy.analysis.regression import NumberAnswers
from densenet_deploy.errors import DataError, ModelFileError, UsageError, printable
from densenet_deploy.manifest import Manifest
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import LabelledImage, find_images, find_labelled_images
from densenet_deploy.runtime.meaning import OutputMeaning
from densenet_deploy.runtime.runner import Runner
from densenet_deploy.workflows.evaluation.label_table import LabelTable
from densenet_deploy.workflows.evaluation.report import (
    FIGURES,
    JUDGED_BY,
    MOST_CHANGED,
    ChangedImage,
    ChangedOutput,
    ClassResult,
    Disagreement,
)
from densenet_deploy.workflows.labelled_images import read_ground_truth

Truth = Mapping[Path, int | tuple[float, ...]]
"""What is right for every image, in order: the index of its class, or a number for each output."""

SharedImage = tuple[Path, int, int]
"""An image that two models could read, and its places among the answers of both."""

A = TypeVar("A", Answers, LabelAnswers, NumberAnswers)

_SHOWN: Final = 5
_ONE_POSITIVE: Final = "the class of an image was taken as its only positive label, all others as negative"
_NO_THRESHOLDS: Final = "no thresholds are stated: F1, precision and recall are those at 0.5"
_IN_ORDER: Final = "the model has no labels: the columns were taken as its outputs in order"


@dataclass(frozen=True)
class LabelledData:
    """Images with what is right for them, and remarks on what was assumed."""

    truth: Truth
    remarks: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the names of the images and what is right for them, whatever their order and folder, in hex."""
        lines = sorted(f"{path.name}\t{right}\n" for path, right in self.truth.items())
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def is_table(data: Path) -> bool:
    """Whether `data` is a CSV of labels, not a folder."""
    return data.suffix.lower() in (".csv", ".tsv") and not data.is_dir()


def images_of(data: Path) -> tuple[Path, ...]:
    """Return the images that a folder holds or a CSV names.

    Raises:
        InputError: if there is neither.
        DataError: if there are no images, or the CSV does not hold labels.
    """
    return tuple(row.path for row in LabelTable.read(data).rows) if is_table(data) else find_images(data)


class TaskEvaluation(ABC, Generic[A]):
    """One task, of one model.

    Args:
        classifier: the model.
        manifest: its facts, if it has any; what they leave open is assumed.
    """

    task: ClassVar[str]

    def __init__(self, classifier: Classifier, manifest: Manifest | None = None) -> None:
        self._classifier, self._manifest = classifier, manifest
        self._labels = classifier.labels

    @property
    def classes(self) -> int:
        """How many classes, labels or numbers the model answers with."""
        return self._classifier.classes

    @abstractmethod
    def read(self, data: Path, ground_truth: Path | None) -> LabelledData:
        """Return the images in `data`, a folder or a CSV, with what is right for them.

        Raises:
            InputError: if a file is missing.
            DataError: if the data do not fit the model.
        """

    def kept(self, rows: Array) -> tuple[Array, ...]:
        """Return what is kept of the outputs (N, C) of a batch: arrays of N rows."""
        return (rows,)

    @abstractmethod
    def answers(self, truth: Array, kept: Sequence[Array]) -> A:
        """Return the answers to all images: `truth` and each of `kept` have a row for each."""

    @abstractmethod
    def figures(self, answers: A) -> dict[str, Any]:
        """Return the fields of the report that belong to the task."""

    def notes(self, answers: A) -> Iterator[str]:  # noqa: ARG002 (for the tasks that have some)
        """Yield what the figures do not say by themselves."""
        yield from ()

    @abstractmethod
    def compared(self, first: A, second: A, shared: Sequence[SharedImage]) -> dict[str, Any]:
        """Return the fields of the comparison of two models that belong to the task."""


class Multiclass(TaskEvaluation[Answers]):
    """One class per image: class folders, a flat folder with a file of classes, or a CSV `file,label`."""

    task = "multiclass"

    def read(self, data: Path, ground_truth: Path | None) -> LabelledData:
        if is_table(data):
            return LabelledData(LabelTable.read(data).classes(self._labels, self.classes))
        labelled, remarks = _of_folder(data, ground_truth, self._labels, self.classes)
        return LabelledData({image.path: image.index for image in labelled}, remarks)

    def kept(self, rows: Array) -> tuple[Array, ...]:
        """The best five classes, best first, and the score of the best: not all of a thousand outputs."""
        best = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]  # among equal scores the lower index, as in `run`
        scores = [float(self._classifier.scores(row)[first]) for row, first in zip(rows, best[:, 0], strict=True)]
        return best, np.array(scores)

    def answers(self, truth: Array, kept: Sequence[Array]) -> Answers:
        best, confidence = kept
        return Answers(truth.astype(np.int64), best.astype(np.int64), confidence)

    def figures(self, answers: Answers) -> dict[str, Any]:
        classes = (
            ClassResult(
                part.index,
                part.count,
                part.right,
                part.answered,
                self._labels[part.index] if self._labels else None,
                part.top1,
            )
            for part in answers.by_class()
        )
        return {
            "top1": answers.top1,
            "top5": None if self.classes <= TOP else answers.top5,
            "calibration_error": answers.calibration_error,
            "reliability": answers.reliability(),
            "classes": tuple(classes),
            "confusion": answers.confusion(),
        }

    def compared(self, first: Answers, second: Answers, shared: Sequence[SharedImage]) -> dict[str, Any]:
        """Compare image by image: where do the classes differ?"""
        found = tuple(
            Disagreement(
                file=path,
                truth=int(first.truth[mine]),
                first=int(first.predicted[mine]),
                first_score=float(first.confidence[mine]),
                second=int(second.predicted[other]),
                second_score=float(second.confidence[other]),
            )
            for path, mine, other in shared
            if first.predicted[mine] != second.predicted[other]
        )
        return {
            "top1_agreement": 1 - len(found) / len(shared) if shared else None,
            "only_first_right": sum(one.first == one.truth for one in found),
            "only_second_right": sum(one.second == one.truth for one in found),
            "disagreements": found,
        }


N = TypeVar("N", LabelAnswers, NumberAnswers)


class _Compared(TaskEvaluation[N]):
    """A task whose models are compared by their figures on the images that both could read."""

    @abstractmethod
    def means(self, answers: N) -> dict[str, float | None]:
        """Return the figures of the task, by JSON key."""

    @abstractmethod
    def changed(self, ours: N, theirs: N, files: Sequence[Path]) -> Iterator[ChangedImage]:
        """Yield the images to which the answers differ, and how."""

    def compared(self, first: N, second: N, shared: Sequence[SharedImage]) -> dict[str, Any]:
        if not shared:
            return {"difference": dict.fromkeys(FIGURES[self.task]), "changed": ()}
        files, mine, other = map(list, zip(*shared, strict=True))
        ours, theirs = first.chosen(mine), second.chosen(other)
        after = self.means(theirs)
        difference = {
            name: None if value is None or (old := after[name]) is None else value - old
            for name, value in self.means(ours).items()
        }
        return {"difference": difference, "changed": tuple(self.changed(ours, theirs, files))}


class Multilabel(_Compared[LabelAnswers]):
    """Labels that hold or do not: a CSV with a column for each, or class folders with one positive label per image."""

    task = "multilabel"

    def read(self, data: Path, ground_truth: Path | None) -> LabelledData:
        if is_table(data):
            table = LabelTable.read(data)
            return LabelledData(table.label_rows(self._labels, self.classes), _in_order(table, self._labels))
        if self.classes == 1:
            why = "folders do not tell the positive from the negative images of a single label"
            raise DataError(data, why, f"give a CSV: file,{self._labels[0] if self._labels else 'label'}")
        labelled, remarks = _of_folder(data, ground_truth, self._labels, self.classes)
        one_hot = np.eye(self.classes)
        rows = {image.path: tuple(one_hot[image.index].tolist()) for image in labelled}
        return LabelledData(rows, (*remarks, _ONE_POSITIVE))

    def answers(self, truth: Array, kept: Sequence[Array]) -> LabelAnswers:
        (rows,) = kept
        meaning = self._classifier.meaning
        scores = meaning.scores(rows)
        return LabelAnswers(truth, rows, meaning.positive(scores), scores)

    def figures(self, answers: LabelAnswers) -> dict[str, Any]:
        found = answers.by_label(self._labels)
        return {**self.means(answers), "by_label": found}

    def notes(self, answers: LabelAnswers) -> Iterator[str]:
        """Say which labels are in no mean, and what was assumed about thresholds and outputs."""
        if self._manifest is None or not self._manifest.thresholds:
            yield _NO_THRESHOLDS
        one_sided = [one for one in answers.by_label(self._labels) if one.auroc is None]
        if one_sided:
            names = [printable(one.label or f"label {one.index}", 40) for one in one_sided]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            yield f"AUROC is undefined without both positive and negative images: {', '.join(names[:_SHOWN])}{more}"
        if self._classifier.meaning.activation is None:
            is_score = bool(answers.outputs.min() >= 0 and answers.outputs.max() <= 1)
            word, why = ("scores", "all are in 0..1") if is_score else ("logits", "some are outside 0..1")
            yield f"the model does not show whether it ends in a sigmoid: its outputs were taken as {word}, since {why}"

    def means(self, answers: LabelAnswers) -> dict[str, float | None]:
        found = answers.by_label()
        return {name: macro(getattr(one, name) for one in found) for name in FIGURES[self.task]}

    def changed(self, ours: LabelAnswers, theirs: LabelAnswers, files: Sequence[Path]) -> Iterator[ChangedImage]:
        """Yield the images of which only one model gives some labels."""
        for row, differ in enumerate(ours.positive != theirs.positive):
            if differ.any():
                indices = np.flatnonzero(differ).tolist()
                yield ChangedImage(files[row], tuple(_changed_label(ours, theirs, row, index) for index in indices))


class Regression(_Compared[NumberAnswers]):
    """Numbers: a CSV with a column for each."""

    task = "regression"

    def read(self, data: Path, ground_truth: Path | None) -> LabelledData:
        if not is_table(data) or ground_truth is not None:
            other = "" if self._is_stated else ", or state the task multilabel if it is a yes or no"
            fix = f"give a CSV: file,{self._labels[0] if self._labels else 'value'}{other}"
            raise DataError(data, "a regression is judged by numbers, which folders do not hold", fix)
        table = LabelTable.read(data)
        return LabelledData(table.numbers(self._labels, self.classes), _in_order(table, self._labels))

    def answers(self, truth: Array, kept: Sequence[Array]) -> NumberAnswers:
        (rows,) = kept
        return NumberAnswers(truth, rows.astype(np.float64))

    @property
    def _is_stated(self) -> bool:
        return self._manifest is not None and self._manifest.task is not None

    def figures(self, answers: NumberAnswers) -> dict[str, Any]:
        return {**self.means(answers), "by_output": answers.by_output(self._labels)}

    def means(self, answers: NumberAnswers) -> dict[str, float | None]:
        return {"mae": answers.mae, "rmse": answers.rmse}

    def changed(self, ours: NumberAnswers, theirs: NumberAnswers, files: Sequence[Path]) -> Iterator[ChangedImage]:
        """Yield the images with the largest differences, the largest first, each with the output that differs most.

        Outputs may have different units: a difference counts in units of its output's root mean square difference.
        """
        differences = np.abs(ours.values - theirs.values)
        usual = np.sqrt(np.square(differences).mean(axis=0))
        relative = np.divide(differences, usual, out=np.zeros_like(differences), where=usual > 0)
        for row in np.argsort(-relative.max(axis=1), kind="stable")[:MOST_CHANGED].tolist():
            index = int(relative[row].argmax())
            if differences[row, index] > 0:
                truth, first, second = (float(one[row, index]) for one in (ours.truth, ours.values, theirs.values))
                yield ChangedImage(files[row], (ChangedOutput(index=index, truth=truth, first=first, second=second),))


def task_of(classifier: Classifier, title: str, manifest: Manifest | None = None) -> TaskEvaluation[Any]:
    """Return the evaluation of a model's task; `title` is its name, for errors.

    Raises:
        ModelFileError: if it returns features.
    """
    task = classifier.meaning.task
    for kind in (Multiclass, Multilabel, Regression):
        if kind.task == task:
            return kind(classifier, manifest)
    why = f"is a {task} model: a vector is neither right nor wrong"
    raise ModelFileError(title, why, "compare its vectors with another model's by `validate`, or evaluate a classifier")


def judged_by(runner: Runner, title: str, option: str, *, takes_errors: bool = False) -> str:
    """Return the JSON key of the figure that judges a model: `top1` or `auroc`, or `mae` if the option takes errors.

    Args:
        runner: of the model.
        title: its name, for errors.
        option: what needs the figure, for errors.
        takes_errors: whether it may be an error, of which less is better, and which has a unit.

    Raises:
        UsageError: if its task has no such figure.
        ModelFileError: if no output has one row of numbers per image.
    """
    labels = runner.manifest.labels if runner.manifest is not None else ()
    task = OutputMeaning.of(runner, labels).task
    if task == "regression" and takes_errors:
        return "mae"
    if task not in JUDGED_BY:
        fix = "omit it; the SQNR compares outputs without labels (quantize --min-sqnr)"
        raise UsageError(option, f"{title} is a {task} model, whose accuracy is not a fraction", fix)
    return JUDGED_BY[task]


def check_sources(data: Path, ground_truth: Path | None) -> None:
    """Refuse two truths about the same images.

    Raises:
        UsageError: if `data` is a CSV and `ground_truth` is given too.
    """
    if ground_truth is not None and is_table(data):
        raise UsageError("ground-truth", f"does not go with {data}, which holds the truth itself", "omit it")


def _of_folder(
    folder: Path, ground_truth: Path | None, labels: Sequence[str], classes: int
) -> tuple[Sequence[LabelledImage], tuple[str, ...]]:
    """Images with a class each, by their folders or by a file; and remarks."""
    if ground_truth is not None:
        return read_ground_truth(folder, ground_truth, labels, classes)
    labelled = find_labelled_images(folder, labels or None)
    found = 1 + max(image.index for image in labelled)
    if found > classes or (found < classes and not labels):
        # without labels, folders are classes by their order, so there must be as many; with labels there may be fewer
        raise DataError(folder, f"has {found} class folders, the model {classes} classes", "give one folder per class")
    return labelled, ()


def _in_order(table: LabelTable, labels: Sequence[str]) -> tuple[str, ...]:
    return (_IN_ORDER,) if not labels and len(table.columns) > 1 else ()


def _changed_label(ours: LabelAnswers, theirs: LabelAnswers, row: int, index: int) -> ChangedOutput:
    truth = float(ours.truth[row, index])
    return ChangedOutput(
        index=index,
        truth=None if math.isnan(truth) else truth,
        first=float(ours.scores[row, index]),
        second=float(theirs.scores[row, index]),
        only_first=bool(ours.positive[row, index]),
    )

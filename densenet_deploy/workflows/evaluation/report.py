"""The report of `evaluate`: the figures of the task, what is weak, and the comparison with a second model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from densenet_deploy.analysis.accuracy import Confusion, ReliabilityBin
from densenet_deploy.analysis.choice import Accuracy
from densenet_deploy.analysis.multilabel import LabelMetrics
from densenet_deploy.analysis.regression import OutputErrors
from densenet_deploy.errors import counted, printable
from densenet_deploy.model import InputDescription
from densenet_deploy.records import Choice, Range
from densenet_deploy.reports import Report, number, percent, table
from densenet_deploy.runtime.meaning import name_of_output

FIGURES: Final[Mapping[str, Mapping[str, str]]] = {
    "multiclass": {"top1": "top-1", "top5": "top-5", "calibration_error": "calibration error"},
    "multilabel": {"auroc": "AUROC", "average_precision": "average precision", "f1": "F1"},
    "regression": {"mae": "MAE", "rmse": "RMSE"},
}
"""The figures of each task, in words by JSON key, the main one first."""

JUDGED_BY: Final = {"multiclass": "top1", "multilabel": "auroc"}
"""The figure by which models of a task are compared, a fraction, larger is better; other tasks have none."""

_PARTS: Final = {
    "multiclass": ("reliability", "classes", "confusion"),
    "multilabel": ("by_label",),
    "regression": ("by_output",),
}
Fraction = Annotated[float, Range(0.0, 1.0)]

_LISTED: Final = 3
_LISTED_FILES: Final = 20
MOST_CHANGED: Final = 20
"""Images of a regression whose differences are recorded."""


@dataclass(frozen=True)
class ClassResult:
    """One class: its images, how many were recognized, and how many images were given this class."""

    index: int
    count: int
    right: int
    answered: int
    label: str | None
    top1: float


@dataclass(frozen=True)
class BadFile:
    """An image that could not be read, and why."""

    file: Path
    reason: str


@dataclass(frozen=True)
class Disagreement:
    """An image to which two models give different classes, with the score of each."""

    file: Path
    truth: int
    first: int
    first_score: float
    second: int
    second_score: float


@dataclass(frozen=True, kw_only=True)
class ChangedOutput:
    """A label that only one of two models gives, or a number that differs.

    Attributes:
        index: of the output.
        truth: what is right: of a label 1 or 0, or None where nobody knows.
        first, second: the score of the label, 0 to 1, or the number, of each model.
        only_first: of a label: whether the first model gives it, not the second; each by its own threshold.
    """

    index: int
    truth: float | None
    first: float
    second: float
    only_first: bool | None = None


@dataclass(frozen=True)
class ChangedImage:
    """An image to which two models give different labels or numbers, and which of them."""

    file: Path
    outputs: tuple[ChangedOutput, ...]


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The figures of the tasks; those of other tasks are None.

    Attributes:
        top1: of multiclass: the fraction of images, 0 to 1, with the right best class.
        top5: the fraction with the right class among the five best; None if there are five classes or fewer.
        calibration_error: the expected calibration error, 0 to 1.
        auroc, average_precision, f1: of multilabel: means over the labels for which they are defined; None if none.
        mae, rmse: of regression: over all numbers, in their unit.
    """

    top1: Fraction | None = None
    top5: Fraction | None = None
    calibration_error: float | None = None
    auroc: Fraction | None = None
    average_precision: float | None = None
    f1: float | None = None
    mae: float | None = None
    rmse: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelComparison(_Figures):
    """What another model answers on the `shared` images that both could read, and its figures on all it could read.

    Attributes:
        model: the other one.
        sha256: of its file, as of the first model's.
        shared: how many images both could read.
        difference: of multilabel and regression: this model's figures minus the other's, on the shared images, by JSON
            key; None where one is undefined.
        by_label, by_output: those of the other model.
        top1_agreement: of multiclass: the fraction of shared images to which both give the same class, right or wrong;
            None if none is shared.
        only_first_right, only_second_right: of multiclass: how many shared images only one of them has right.
        disagreements: of multiclass: the shared images to which they give different classes.
        changed: of multilabel: the shared images to which they give different labels, with these; of regression: the
            twenty whose numbers differ most, each with the output that does, relative to how much it usually differs.
            None in reports of older versions, which did not look for them.
    """

    model: str
    count: int
    images_per_second: float
    backend: str
    precision: str
    shared: int
    sha256: str | None = None
    difference: Mapping[str, float | None] = field(default_factory=dict)
    by_label: tuple[LabelMetrics, ...] = ()
    by_output: tuple[OutputErrors, ...] = ()
    top1_agreement: float | None = None
    only_first_right: int | None = None
    only_second_right: int | None = None
    disagreements: tuple[Disagreement, ...] = ()
    changed: tuple[ChangedImage, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(Report, _Figures):
    """How good `model` is at its task. The JSON holds the keys of that task alone.

    Attributes:
        task: multiclass, multilabel or regression.
        count: images that could be read.
        images_per_second: including decoding.
        classes: of multiclass: every class that has images.
        confusion: of multiclass: the nonzero entries of the confusion matrix.
        reliability: of multiclass: the bins of score that hold answers.
        by_label: of multilabel: the metrics of every label.
        by_output: of regression: the errors of every output.
        bad: images that could not be read.
        against: the comparison with a second model.
        labels: names of the classes, labels or numbers in the order of the outputs; may be empty.
        sha256: of the model's file, in hex; None of a model in memory or an open runner, and in older reports.
        truth_sha256: of the names of all images with what is right for them, in hex: reports with different ones are of
            different images. None in reports of older versions.
        input: how images were prepared.
    """

    kind: ClassVar[str] = "evaluate"

    model: str
    task: Annotated[str, Choice(*FIGURES)]
    count: Annotated[int, Range(1)]
    images_per_second: float
    seconds: float
    reliability: tuple[ReliabilityBin, ...] = ()
    classes: tuple[ClassResult, ...] = ()
    confusion: tuple[Confusion, ...] = ()
    by_label: tuple[LabelMetrics, ...] = ()
    by_output: tuple[OutputErrors, ...] = ()
    bad: tuple[BadFile, ...] = ()
    backend: str
    device: str
    precision: str
    labels: tuple[str, ...] = ()
    sha256: str | None = None
    truth_sha256: str | None = None
    input: InputDescription | None = None
    against: ModelComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report with plain types; keys of other tasks are left out."""
        facts = super().to_json()
        figures = {name: facts.pop(name) for name in _names_of(FIGURES)}
        head = {name: facts.pop(name) for name in ("model", "task", "count")}
        own = {name: figures[name] for name in FIGURES[self.task]}
        others = _names_of(_PARTS) - set(_PARTS[self.task])
        if facts["against"] is not None:
            facts["against"] = _of_task(facts["against"], self.task)
        return head | own | {name: value for name, value in facts.items() if name not in others}

    @property
    def accuracy(self) -> Accuracy | None:
        """The main figure of the task; None of labels without both positive and negative images."""
        return Accuracy.of(self)

    @property
    def second(self) -> EvaluateReport | None:
        """What is known of the model of `against`: its figures, without classes, confusion and unreadable images."""
        if self.against is None:
            return None
        names = {field.name for field in dataclasses.fields(EvaluateReport)}
        known = {field.name for field in dataclasses.fields(ModelComparison)} & names
        shared = {name: getattr(self.against, name) for name in known}
        same = {name: getattr(self, name) for name in ("task", "device", "labels", "truth_sha256")}
        return EvaluateReport(seconds=0.0, **same, **shared)

    def to_text(self) -> str:
        """Return the figures, those of the labels or weakest classes, and the comparison with the second model."""
        where = f"{self.backend}, {self.device}, {self.precision}"
        return "\n".join(
            [
                *_LINES[self.task](self),
                f"{self.images_per_second:.1f} images/s, including decoding ({where})",
                *(f"not read: {printable(bad.file)}: {printable(bad.reason)}" for bad in self.bad),
                *(() if self.against is None else self._comparison(self.against)),
            ]
        )

    def name_of(self, index: int) -> str:
        """Return the label of an output in printable characters, or `class 7`, `label 7` or `output 7`.

        Where several outputs have the same label, the index follows: `crane (134)`.
        """
        if not self.labels:
            kind = {"multiclass": "class", "multilabel": "label"}.get(self.task, "output")
            return f"{kind} {index}"
        label = self.labels[index]
        return name_of_output(printable(label, 40), index, is_shared=self.labels.count(label) > 1)

    def _comparison(self, other: ModelComparison) -> list[str]:
        return [*self._disagreements(other)] if self.task == "multiclass" else [*self._differences(other)]

    def _differences(self, other: ModelComparison) -> Iterator[str]:
        names = FIGURES[self.task]
        figures = ", ".join(f"{words} {number(getattr(other, name))}" for name, words in names.items())
        yield f"against {printable(other.model)}: {figures} on {counted(other.count, 'image')}"
        changes = (f"{words} {_signed(other.difference.get(name))}" for name, words in names.items())
        yield f"difference, this model minus the other on {other.shared} shared images: {', '.join(changes)}"
        if other.changed is None:
            return
        if self.task == "multilabel":
            yield f"different labels on {len(other.changed)} of {other.shared} shared images"
        elif other.changed:
            yield "largest differences:"
        for image in other.changed[:_LISTED_FILES]:
            yield f"  {printable(image.file)}: {'; '.join(map(self._changed_output, image.outputs[:_LISTED]))}"
        yield from _more(len(other.changed))

    def _changed_output(self, found: ChangedOutput) -> str:
        truth = "not known" if found.truth is None else number(found.truth)
        first, second = number(found.first), number(found.second)
        return f"{self.name_of(found.index)}: {first}, the other {second}, truth {truth}"

    def _disagreements(self, other: ModelComparison) -> Iterator[str]:
        agreement = "no image in common" if other.top1_agreement is None else f"{other.top1_agreement:.2%} agreement"
        only = f"only one is right: {other.only_first_right} (this model), {other.only_second_right} (the other)"
        yield f"against {printable(other.model)}: top-1 {percent(other.top1)}, {agreement}, {only}"
        yield from map(self._disagreement, other.disagreements[:_LISTED_FILES])
        yield from _more(len(other.disagreements))

    def _disagreement(self, found: Disagreement) -> str:
        first = f"{self.name_of(found.first)} ({found.first_score:.0%})"
        second = f"{self.name_of(found.second)} ({found.second_score:.0%})"
        return f"  {printable(found.file)}: truth {self.name_of(found.truth)}; this model {first}, the other {second}"


def _more(count: int) -> Iterator[str]:
    if count > _LISTED_FILES:
        yield f"… and {count - _LISTED_FILES} more; --json lists all"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4g}"


def _multiclass_lines(report: EvaluateReport) -> Iterator[str]:
    top5 = "" if report.top5 is None else f", top-5 {report.top5:.2%}"
    yield f"top-1 {percent(report.top1)}{top5} on {counted(report.count, 'image')}"
    yield f"calibration error {percent(report.calibration_error)}"
    weakest = sorted((part for part in report.classes if part.right < part.count), key=lambda part: part.top1)
    if weakest:
        listed = (f"{report.name_of(part.index)} ({part.top1:.1%} of {part.count})" for part in weakest[:_LISTED])
        yield f"weakest classes: {', '.join(listed)}"
    wrong = [entry for entry in report.confusion if entry.truth != entry.predicted]
    worst = sorted(wrong, key=lambda entry: -entry.count)[:_LISTED]
    if worst:
        pairs = ((report.name_of(entry.truth), report.name_of(entry.predicted), entry.count) for entry in worst)
        yield f"most frequent confusions: {', '.join(f'{one} as {other} ({count})' for one, other, count in pairs)}"


def _multilabel_lines(report: EvaluateReport) -> Iterator[str]:
    figures = ", ".join(f"{words} {number(getattr(report, name))}" for name, words in FIGURES[report.task].items())
    yield f"{figures} (means over the labels) on {counted(report.count, 'image')}"
    header = ("label", "known", "positive", "AUROC", "avg. precision", "F1", "precision", "recall")
    rows = (
        (
            report.name_of(one.index),
            str(one.count),
            str(one.positives),
            *map(number, (one.auroc, one.average_precision, one.f1, one.precision, one.recall)),
        )
        for one in report.by_label
    )
    yield from table(header, rows, range(1, len(header)))


def _regression_lines(report: EvaluateReport) -> Iterator[str]:
    yield f"MAE {number(report.mae)}, RMSE {number(report.rmse)} on {counted(report.count, 'image')}"
    if len(report.by_output) > 1:
        rows = ((report.name_of(one.index), number(one.mae), number(one.rmse)) for one in report.by_output)
        yield from table(("output", "MAE", "RMSE"), rows, (1, 2))


_LINES: Final = {"multiclass": _multiclass_lines, "multilabel": _multilabel_lines, "regression": _regression_lines}

_COMPARED: Final = {
    "multiclass": ("top1_agreement", "only_first_right", "only_second_right", "disagreements"),
    "multilabel": ("difference", "by_label", "changed"),
    "regression": ("difference", "by_output", "changed"),
}


def _of_task(facts: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the facts of a comparison without those of other tasks."""
    others = (_names_of(FIGURES) - set(FIGURES[task])) | (_names_of(_COMPARED) - set(_COMPARED[task]))
    return {name: value for name, value in facts.items() if name not in others}


def _names_of(by_task: Mapping[str, Sequence[str] | Mapping[str, str]]) -> set[str]:
    return {name for names in by_task.values() for name in names}

"""Evaluate: accuracy on labelled images, overall and per class, and the images on which two models disagree.

Threads decode and prepare images while the model runs the previous batch. On a machine without an accelerator both
share the CPUs, so there the overlap saves only what one of them leaves idle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Unpack

import numpy as np

from densenet_deploy.analysis.accuracy import TOP, Answers, Confusion, ReliabilityBin
from densenet_deploy.artifacts import Artifact, StrPath
from densenet_deploy.errors import DataError, ModelFileError, UsageError, printable
from densenet_deploy.model import untrained_note
from densenet_deploy.options import require_range
from densenet_deploy.reports import Report
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.image_folders import LabelledImage, find_labelled_images
from densenet_deploy.runtime.preprocess import Pixels
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from densenet_deploy.workflows.labelled_images import PreparedImages, read_ground_truth
from densenet_deploy.workflows.load import LoadOptions, is_file_name, load
from densenet_deploy.workflows.stages import Listener, ignore

if TYPE_CHECKING:
    from densenet_deploy.model import Model

Prepared = tuple[Path, Pixels]

_LISTED: Final = 3
_LISTED_FILES: Final = 20
_TASK: Final = "multiclass"


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        batch: images per call.
        max_bad: how many images may be unreadable.
        ground_truth: the file with the classes of a flat folder; None: one subfolder per class.
        decode_threads: None means one per usable CPU.
        against, against_backend: a second model to list the disagreements with, and its backend.

    Raises:
        UsageError: if a number is out of range, or `against_backend` is given without `against`.
    """

    batch: int = 16
    max_bad: int = 0
    ground_truth: StrPath | None = None
    decode_threads: int | None = None
    against: StrPath | Model | None = None
    against_backend: str | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 4096)
        require_range("max-bad", self.max_bad, 0, 10**9)
        if self.decode_threads is not None:
            require_range("decode-threads", self.decode_threads, 1, 1024)
        if self.against_backend is not None and self.against is None:
            raise UsageError(f"against-backend={self.against_backend}", "has no model to run", "add --against OTHER")


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


@dataclass(frozen=True)
class ModelComparison:
    """What another model answers on the `shared` images that both could read.

    `top1_agreement` is the fraction of them to which both give the same class, right or wrong; None if none is shared.
    """

    model: str
    top1: float
    top5: float | None
    count: int
    images_per_second: float
    calibration_error: float
    backend: str
    precision: str
    shared: int
    top1_agreement: float | None
    only_first_right: int
    only_second_right: int
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(Report):
    """The accuracy of `model`.

    Attributes:
        task: what the outputs mean; only `multiclass` is evaluated.
        count: images that could be read.
        top1: fraction of them, 0 to 1, with the right best class.
        top5: fraction with the right class among the five best; None if the model has five classes or fewer.
        images_per_second: including decoding.
        calibration_error: the expected calibration error, 0 to 1.
        classes: every class that has images.
        confusion: the nonzero entries of the confusion matrix.
        bad: images that could not be read.
        against: the comparison with a second model.
        labels: class names in the order of the outputs; may be empty.
    """

    kind: ClassVar[str] = "evaluate"

    model: str
    task: str
    count: int
    top1: float
    top5: float | None
    images_per_second: float
    seconds: float
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    classes: tuple[ClassResult, ...]
    confusion: tuple[Confusion, ...]
    bad: tuple[BadFile, ...]
    backend: str
    device: str
    precision: str
    labels: tuple[str, ...] = ()
    against: ModelComparison | None = None

    def to_text(self) -> str:
        """Return the figures, the weakest classes, and the disagreements with the second model."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2%}"
        where = f"{self.backend}, {self.device}, {self.precision}"
        return "\n".join(
            [
                f"top-1 {self.top1:.2%}{top5} on {self.count} images",
                f"calibration error {self.calibration_error:.2%}",
                *self._weak_classes(),
                *self._confusions(),
                f"{self.images_per_second:.1f} images/s, including decoding ({where})",
                *(f"not read: {printable(bad.file)}: {printable(bad.reason)}" for bad in self.bad),
                *self._disagreements(),
            ]
        )

    def _name(self, index: int) -> str:
        return printable(self.labels[index] if self.labels else f"class {index}", 40)

    def _weak_classes(self) -> list[str]:
        weakest = sorted((part for part in self.classes if part.right < part.count), key=lambda part: part.top1)
        listed = (f"{self._name(part.index)} ({part.top1:.1%} of {part.count})" for part in weakest[:_LISTED])
        return [f"weakest classes: {', '.join(listed)}"] if weakest else []

    def _confusions(self) -> list[str]:
        wrong = [entry for entry in self.confusion if entry.truth != entry.predicted]
        worst = sorted(wrong, key=lambda entry: -entry.count)[:_LISTED]
        listed = (f"{self._name(entry.truth)} as {self._name(entry.predicted)} ({entry.count})" for entry in worst)
        return [f"most frequent confusions: {', '.join(listed)}"] if worst else []

    def _disagreements(self) -> list[str]:
        other = self.against
        if other is None:
            return []
        agreement = "no image in common" if other.top1_agreement is None else f"{other.top1_agreement:.2%} agreement"
        only = f"only one is right: {other.only_first_right} (this model), {other.only_second_right} (the other)"
        title = f"against {printable(other.model)}: top-1 {other.top1:.2%}, {agreement}, {only}"
        more = len(other.disagreements) - _LISTED_FILES
        rest = [f"… and {more} more; --json lists all"] if more > 0 else []
        return [title, *map(self._disagreement, other.disagreements[:_LISTED_FILES]), *rest]

    def _disagreement(self, found: Disagreement) -> str:
        first = f"{self._name(found.first)} ({found.first_score:.0%})"
        second = f"{self._name(found.second)} ({found.second_score:.0%})"
        return f"  {printable(found.file)}: {self._name(found.truth)}; {first}, the other {second}"


def evaluate(
    model: StrPath | Model | Runner,
    data: StrPath,
    options: EvaluateOptions | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    runner_options: RunnerOptions | None = None,
    progress: Listener | None = None,
    **stated: Unpack[LoadOptions],
) -> EvaluateReport:
    """Measure accuracy on `data`: one subfolder of images per class, or a flat folder and `options.ground_truth`.

    >>> evaluate("densenet121.onnx", "val/").top1                                            # doctest: +SKIP
    0.7443

    Args:
        model: whatever `load` takes, or an open runner, which stays open.
        data: the folder.
        options: see `EvaluateOptions`.
        backend: as for `open_runner`; an open runner keeps its own.
        device: likewise.
        runner_options: likewise.
        progress: called with the number of images done.
        **stated: facts about the model; see `load`.

    Raises:
        DataError: if the classes do not fit the model's, or more than `max_bad` images cannot be read.
        InputError: if a model cannot be used, or does not classify.
        BackendError: if a backend or device is not available.
    """
    options, folder, progress = options or EvaluateOptions(), Path(data), progress or ignore
    # idle threads of the backend must not keep a core from those that decode
    runner_options = dataclasses.replace(runner_options or RunnerOptions(), spin=False)
    if is_file_name(options.against):
        Artifact.open(Path(options.against))  # reported before the first model runs
    with _opened(model, backend, device, runner_options, stated) as runner:
        first = _evaluated(_title(model), runner, folder, options, progress)
    if options.against is None:
        return first.report
    with _opened(options.against, options.against_backend, device, runner_options, {}) as runner:
        _require_same_labels(first, runner, _title(options.against))
        second = _evaluated(_title(options.against), runner, folder, options, progress)
    notes = (*first.report.notes, *(f"{second.report.model}: {note}" for note in second.report.notes))
    return dataclasses.replace(first.report, notes=notes, against=_compared(first, second))


def _opened(
    model: Any, backend: str | None, device: str | None, options: RunnerOptions, stated: LoadOptions
) -> contextlib.AbstractContextManager[Runner]:
    if isinstance(model, Runner):
        if stated:
            raise UsageError(", ".join(stated), "cannot be stated of a runner that is open", "give the model itself")
        return contextlib.nullcontext(model)
    return open_runner(load(model, **stated), backend, device, options)


def _require_same_labels(first: _Evaluation, runner: Runner, title: str) -> None:
    """Check the labels of the second model: classes are compared by index."""
    labels = runner.manifest.labels if runner.manifest is not None else ()
    if labels and first.report.labels and labels != first.report.labels:
        fix = "compare models with the same labels in the same order"
        raise DataError(title, f"has other labels than {first.report.model}, or in another order", fix)


def _title(model: Any) -> str:
    return str(model) if isinstance(model, (str, os.PathLike)) else str(getattr(model, "name", type(model).__name__))


@dataclass(frozen=True)
class _Evaluation:
    """The report on one model, and its answers to `files`, the images that could be read."""

    report: EvaluateReport
    answers: Answers
    files: tuple[Path, ...]


def _evaluated(title: str, runner: Runner, folder: Path, options: EvaluateOptions, progress: Listener) -> _Evaluation:
    task = None if runner.manifest is None else runner.manifest.task
    if task not in (None, _TASK):
        why = f"is a {task} model; only {_TASK} models are evaluated so far"
        raise ModelFileError(title, why, "classify the images with `run` and compare the scores yourself")
    classifier = Classifier(runner)
    classes = runner.outputs[0].shape[1]
    labelled, remarks = _labelled(classifier, folder, options, classes)
    truth = {image.path: image.index for image in labelled}
    prepared = PreparedImages(
        truth,
        classifier.preprocessing,
        max_bad=options.max_bad,
        ahead=2 * options.batch,
        threads=options.decode_threads,
    )
    start = time.perf_counter()
    files, answers = _answers(classifier, prepared, truth, options.batch, progress)
    seconds = time.perf_counter() - start
    if not files:
        raise DataError(folder, "holds no readable image", "check the files")
    labels = classifier.labels
    report = EvaluateReport(
        model=title,
        task=_TASK,
        count=answers.count,
        top1=answers.top1,
        top5=None if classes is not None and classes <= TOP else answers.top5,
        images_per_second=answers.count / seconds,
        seconds=seconds,
        calibration_error=answers.calibration_error,
        reliability=answers.reliability(),
        classes=tuple(_class_results(answers, labels)),
        confusion=answers.confusion(),
        bad=tuple(BadFile(bad.path, bad.error.why) for bad in prepared.bad),
        backend=runner.placement.backend,
        device=runner.placement.device,
        precision=runner.placement.precision,
        labels=labels,
        notes=(*untrained_note(runner.manifest), *classifier.assumptions, *remarks),
    )
    return _Evaluation(report, answers, files)


def _class_results(answers: Answers, labels: Sequence[str]) -> Iterator[ClassResult]:
    for part in answers.by_class():
        label = labels[part.index] if labels else None
        yield ClassResult(part.index, part.count, part.right, part.answered, label, part.top1)


def _labelled(
    classifier: Classifier, folder: Path, options: EvaluateOptions, classes: int | None
) -> tuple[tuple[LabelledImage, ...], tuple[str, ...]]:
    if options.ground_truth is not None:
        return read_ground_truth(folder, Path(options.ground_truth), classifier.labels, classes)
    labelled = find_labelled_images(folder, classifier.labels or None)
    _check_classes(folder, labelled, classes, by_name=bool(classifier.labels))
    return labelled, ()


def _check_classes(folder: Path, labelled: tuple[LabelledImage, ...], classes: int | None, *, by_name: bool) -> None:
    """Without labels, folders are classes by their order, so there must be as many; with labels there may be fewer."""
    found = 1 + max(image.index for image in labelled)
    if classes is not None and (found > classes or (found < classes and not by_name)):
        why = f"has {found} class folders, the model {classes} classes"
        raise DataError(folder, why, "give one folder per class")


def _answers(
    classifier: Classifier, prepared: Iterable[Prepared], truth: dict[Path, int], size: int, progress: Listener
) -> tuple[tuple[Path, ...], Answers]:
    """The model's answer to every readable image, and the files, in order."""
    files: list[Path] = []
    best: list[np.ndarray] = []
    confidence: list[float] = []
    images = iter(prepared)
    while batch := list(itertools.islice(images, size)):
        progress("evaluate", len(files), len(truth))
        files += [path for path, _ in batch]
        for row in classifier.logits(np.stack([pixels for _, pixels in batch])):
            ranked = np.argsort(-row, kind="stable")[:TOP]  # among equal scores the lower index, as in `run`
            best.append(ranked)
            confidence.append(float(classifier.scores(row)[ranked[0]]))
    right = np.array([truth[path] for path in files], np.int64)
    return tuple(files), Answers(right, np.array(best, np.int64), np.array(confidence))


def _compared(first: _Evaluation, second: _Evaluation) -> ModelComparison:
    """Compare the answers to the images that both could read."""
    positions = {path: position for position, path in enumerate(second.files)}
    shared = [(path, mine, positions[path]) for mine, path in enumerate(first.files) if path in positions]
    ours, theirs, report = first.answers, second.answers, second.report
    disagreements = tuple(
        Disagreement(
            file=path,
            truth=int(ours.truth[mine]),
            first=int(ours.predicted[mine]),
            first_score=float(ours.confidence[mine]),
            second=int(theirs.predicted[other]),
            second_score=float(theirs.confidence[other]),
        )
        for path, mine, other in shared
        if ours.predicted[mine] != theirs.predicted[other]
    )
    return ModelComparison(
        model=report.model,
        top1=report.top1,
        top5=report.top5,
        count=report.count,
        images_per_second=report.images_per_second,
        calibration_error=report.calibration_error,
        backend=report.backend,
        precision=report.precision,
        shared=len(shared),
        top1_agreement=1 - len(disagreements) / len(shared) if shared else None,
        only_first_right=sum(found.first == found.truth for found in disagreements),
        only_second_right=sum(found.second == found.truth for found in disagreements),
        disagreements=disagreements,
    )

"""Evaluate: accuracy on labelled images, by class and in all, and where two models disagree.

Threads decode and prepare images while the model runs the batch before. Both share the CPUs of a machine without an
accelerator, so there the overlap saves only what one of them leaves idle.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densenet_deploy.analysis.accuracy import TOP, Answers
from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.image_folders import LabelledImage, find_labelled_images
from densenet_deploy.runtime.preprocess import Pixels
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.workflows.evaluate.decoding import PreparedImages
from densenet_deploy.workflows.evaluate.ground_truth import read_ground_truth
from densenet_deploy.workflows.evaluate.report import Disagreement, EvaluateReport, SecondOpinion
from densenet_deploy.workflows.load import open_model
from densenet_deploy.workflows.notes import untrained_note

Prepared = tuple[Path, Pixels]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        batch: images run at once.
        max_bad: how many images may be unreadable before it is an error.
        ground_truth: the file with the classes of a flat folder; None: one folder a class.
        decode_threads: None means one for each usable CPU.
        against, against_backend: a second model to list the disagreements with, and what runs it.
    """

    batch: int = 16
    max_bad: int = 0
    ground_truth: Path | None = None
    decode_threads: int | None = None
    against: Path | None = None
    against_backend: str | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 4096)
        require_range("max-bad", self.max_bad, 0, 10**9)
        if self.decode_threads is not None:
            require_range("decode-threads", self.decode_threads, 1, 1024)
        if self.against_backend is not None and self.against is None:
            raise UsageError(f"against-backend={self.against_backend}", "has no model to run", "add --against OTHER")


def evaluate(
    model: Any,
    data: Path,
    options: EvaluateOptions | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    runner_options: RunnerOptions | None = None,
) -> EvaluateReport:
    """Measure accuracy on `data`: one folder of images a class, or a flat folder and `options.ground_truth`.

    Raises:
        DataError: if the classes do not fit the model's, or more than `max_bad` images cannot be read.
        InputError: if a model cannot be used.
        BackendError: if a backend or device cannot be had.
    """
    options = options or EvaluateOptions()
    if options.against is None:
        return _evaluate(model, data, options, backend, device, runner_options)
    Artifact.open(options.against)  # what is wrong with it is said before the first model runs
    report = _evaluate(model, data, options, backend, device, runner_options)
    other = _evaluate(options.against, data, options, options.against_backend, device, runner_options)
    notes = (*report.notes, *(f"{options.against}: {note}" for note in other.notes))
    return dataclasses.replace(report, notes=notes, against=_second_opinion(report, other))


def _evaluate(
    model: Any,
    data: Path,
    options: EvaluateOptions,
    backend: str | None,
    device: str | None,
    runner_options: RunnerOptions | None,
) -> EvaluateReport:
    # threads that wait for the next batch are not to keep those from a core that decode it
    runner_options = dataclasses.replace(runner_options or RunnerOptions(), spin=False)
    with open_model(model, backend, device, runner_options) as runner:
        classifier = Classifier(runner)
        classes = runner.outputs[0].shape[1]
        labelled, remarks = _labelled(classifier, data, options, classes)
        truth = {image.path: image.index for image in labelled}
        prepared = PreparedImages(
            truth,
            classifier.preprocessing,
            max_bad=options.max_bad,
            ahead=2 * options.batch,
            threads=options.decode_threads,
        )
        start = time.perf_counter()
        files, answers = _answers(classifier, prepared, truth, options.batch)
        seconds = time.perf_counter() - start
        if not files:
            raise DataError(data, "holds no image that can be read", "check the files")
        return EvaluateReport(
            model=Path(str(getattr(model, "name", model))),
            answers=answers,
            files=files,
            classes=classes,
            labels=classifier.labels,
            seconds=seconds,
            bad=tuple(prepared.bad),
            placement=runner.placement,
            notes=(*untrained_note(runner.manifest), *classifier.assumptions, *remarks),
        )


def _labelled(
    classifier: Classifier, data: Path, options: EvaluateOptions, classes: int | None
) -> tuple[tuple[LabelledImage, ...], tuple[str, ...]]:
    if options.ground_truth is not None:
        return read_ground_truth(data, options.ground_truth, classifier.labels, classes)
    labelled = find_labelled_images(data, classifier.labels or None)
    _check_classes(data, labelled, classes, by_name=bool(classifier.labels))
    return labelled, ()


def _check_classes(data: Path, labelled: tuple[LabelledImage, ...], classes: int | None, *, by_name: bool) -> None:
    """Without labels folders are classes by their order, so there must be as many; with labels there may be fewer."""
    found = 1 + max(image.index for image in labelled)
    if classes is not None and (found > classes or (found < classes and not by_name)):
        raise DataError(data, f"has {found} class folders, the model {classes} classes", "give one folder a class")


def _answers(
    classifier: Classifier, prepared: Iterable[Prepared], truth: dict[Path, int], size: int
) -> tuple[tuple[Path, ...], Answers]:
    """What the model answers to every image that can be read, and their files, in order."""
    files: list[Path] = []
    best: list[np.ndarray] = []
    confidence: list[float] = []
    for batch in _batches(prepared, size):
        files += [path for path, _ in batch]
        for row in classifier.logits(np.stack([pixels for _, pixels in batch])):
            ranked = np.argsort(-row, kind="stable")[:TOP]  # of equals the lower index, as `run` has it
            best.append(ranked)
            confidence.append(float(classifier.scores(row)[ranked[0]]))
    right = np.array([truth[path] for path in files], np.int64)
    return tuple(files), Answers(right, np.array(best, np.int64), np.array(confidence))


def _batches(images: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _second_opinion(first: EvaluateReport, second: EvaluateReport) -> SecondOpinion:
    """Compare the answers to the images that both could read."""
    theirs = {path: position for position, path in enumerate(second.files)}
    shared = [(path, ours, theirs[path]) for ours, path in enumerate(first.files) if path in theirs]
    disagreements = tuple(
        Disagreement(
            file=path,
            truth=int(first.answers.truth[ours]),
            first=int(first.answers.predicted[ours]),
            first_score=float(first.answers.confidence[ours]),
            second=int(second.answers.predicted[their]),
            second_score=float(second.answers.confidence[their]),
        )
        for path, ours, their in shared
        if first.answers.predicted[ours] != second.answers.predicted[their]
    )
    return SecondOpinion(second, len(shared), disagreements)

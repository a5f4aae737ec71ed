"""Evaluate: how good a model is at its task, on images for which the truth is known, and how two models compare.

`evaluation/tasks.py` says what is measured for each task. Threads decode and prepare images while the model runs the
previous batch. On a machine without an accelerator both share the CPUs, so there the overlap saves only what one of
them leaves idle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from densenet_deploy.artifacts import Artifact, StrPath
from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.model import InputDescription, untrained_note
from densenet_deploy.options import require_range
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import PreparedImages
from densenet_deploy.runtime.preprocess import PreparedImage
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from densenet_deploy.workflows.evaluation.report import FIGURES, BadFile, EvaluateReport, ModelComparison
from densenet_deploy.workflows.evaluation.tasks import TaskEvaluation, check_sources, task_of
from densenet_deploy.workflows.image_sources import fast_decode_note
from densenet_deploy.workflows.load import INPUT_FACTS, LoadOptions, facts_alone, is_file_name, load
from densenet_deploy.workflows.stages import Listener, in_notebook

if TYPE_CHECKING:
    from densenet_deploy.model import Model

Prepared = tuple[Path, PreparedImage]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    >>> EvaluateOptions(batch=32, max_bad=5).max_bad
    5

    Attributes:
        batch: images per call.
        max_bad: how many images may be unreadable.
        ground_truth: the file with the classes of a flat folder; None: one subfolder per class, or a CSV.
        decode_threads: None means one per usable CPU.
        against, against_backend: a second model of the same task to compare with, and its backend. What is stated about
            images and outputs applies to both models.
        fast_decode: decode JPEGs at a reduced scale: faster, and not exact (see `Classifier`).

    Raises:
        UsageError: if a number is out of range, or `against_backend` is given without `against`.
    """

    batch: int = 16
    max_bad: int = 0
    ground_truth: StrPath | None = None
    decode_threads: int | None = None
    against: StrPath | Model | None = None
    against_backend: str | None = None
    fast_decode: bool = False

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 4096)
        require_range("max-bad", self.max_bad, 0, 10**9)
        if self.decode_threads is not None:
            require_range("decode-threads", self.decode_threads, 1, 1024)
        if self.against_backend is not None and self.against is None:
            raise UsageError(f"against-backend={self.against_backend}", "has no model to run", "add --against OTHER")


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
    """Measure how good a model is at its task: top-1 and top-5, AUROC of every label, or the errors of its numbers.

    >>> evaluate("digits.onnx", "held_out").top1
    0.9917

    Args:
        model: whatever `load` takes, or an open runner, which stays open.
        data: one subfolder of images per class, a flat folder and `options.ground_truth`, or a `.csv` file (see
            `workflows.evaluation.label_table`).
        options: see `EvaluateOptions`.
        backend: as for `open_runner`; an open runner keeps its own.
        device: likewise.
        runner_options: likewise.
        progress: called with the number of images done.
        **stated: facts about the model, and those of images and outputs about `options.against` too; see `load`.

    Raises:
        DataError: if the data do not fit the model, or more than `max_bad` images cannot be read.
        InputError: if a model cannot be used, or returns features.
        UsageError: if a fact is invalid, or `ground_truth` is given beside a CSV.
        BackendError: if a backend or device is not available.
    """
    options, data, progress = options or EvaluateOptions(), Path(data), progress or in_notebook
    check_sources(data, None if options.ground_truth is None else Path(options.ground_truth))
    # idle threads of the backend must not keep a core from those that decode
    runner_options = dataclasses.replace(runner_options or RunnerOptions(), spin=False)
    if is_file_name(options.against):
        Artifact.open(Path(options.against))  # reported before the first model runs
    with _opened(model, backend, device, runner_options, stated) as runner:
        first = _evaluated(_title(model), runner, data, options, progress)
    if options.against is None:
        return first.report
    with _opened(options.against, options.against_backend, device, runner_options, facts_alone(stated)) as runner:
        _require_comparable(first, runner, _title(options.against))
        second = _evaluated(_title(options.against), runner, data, options, progress)
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


def _require_comparable(first: _Evaluation, runner: Runner, title: str) -> None:
    """Check the task and labels of the second model: classes are compared by index."""
    labels, task = runner.manifest.labels if runner.manifest is not None else (), Classifier(runner).meaning.task
    if task != first.report.task:
        why = f"is a {task} model, {first.report.model} a {first.report.task} model"
        raise DataError(title, why, "compare models of one task; `export` gives an ONNX file the task it should have")
    if labels and first.report.labels and labels != first.report.labels:
        fix = "compare models with the same labels in the same order"
        raise DataError(title, f"has other labels than {first.report.model}, or in another order", fix)


def _title(model: Any) -> str:
    return str(model) if isinstance(model, (str, os.PathLike)) else str(getattr(model, "name", type(model).__name__))


@dataclass(frozen=True)
class _Evaluation:
    """The report on one model, and its answers to `files`, the images that could be read."""

    task: TaskEvaluation[Any]
    report: EvaluateReport
    answers: Any
    files: tuple[Path, ...]


def _evaluated(title: str, runner: Runner, data: Path, options: EvaluateOptions, progress: Listener) -> _Evaluation:
    classifier = Classifier(runner, fast=options.fast_decode)
    task = task_of(classifier, title, runner.manifest)
    labelled = task.read(data, None if options.ground_truth is None else Path(options.ground_truth))
    prepared = PreparedImages(
        labelled.truth,
        classifier.preprocessing,
        max_bad=options.max_bad,
        fast=options.fast_decode,
        ahead=2 * options.batch,
        threads=options.decode_threads,
    )
    start = time.perf_counter()
    files, kept = kept_outputs(classifier, task, prepared, len(labelled.truth), options.batch, progress)
    seconds = time.perf_counter() - start
    if not files:
        raise DataError(data, "holds no readable image", "check the files")
    answers = task.answers(np.array([labelled.truth[path] for path in files]), kept)
    report = EvaluateReport(
        model=title,
        task=task.task,
        count=len(files),
        images_per_second=len(files) / seconds,
        seconds=seconds,
        **task.figures(answers),
        bad=tuple(BadFile(bad.path, bad.error.why) for bad in prepared.bad),
        backend=runner.placement.backend,
        device=runner.placement.device,
        precision=runner.placement.precision,
        labels=classifier.labels,
        input=_input_of(classifier, runner),
        notes=(
            *untrained_note(runner.manifest),
            *classifier.assumptions,
            *fast_decode_note(classifier),
            *labelled.remarks,
            *task.notes(answers),
        ),
    )
    return _Evaluation(task, report, answers, files)


def _input_of(classifier: Classifier, runner: Runner) -> InputDescription:
    assumed = runner.manifest.assumed if runner.manifest is not None else INPUT_FACTS
    return InputDescription.of(classifier.preprocessing, assumed, fast_decode=classifier.fast)


def kept_outputs(
    classifier: Classifier,
    task: TaskEvaluation[Any],
    prepared: Iterable[Prepared],
    count: int,
    size: int,
    progress: Listener,
) -> tuple[tuple[Path, ...], list[Array]]:
    """Return the files of every readable image, in order, and what the task keeps of the model's outputs for them."""
    files: list[Path] = []
    kept: list[tuple[Array, ...]] = []
    images = iter(prepared)
    while batch := list(itertools.islice(images, size)):
        progress("evaluate", len(files), count)
        files += [path for path, _ in batch]
        kept.append(task.kept(classifier.logits(np.stack([image.pixels for _, image in batch]))))
    return tuple(files), [np.concatenate(parts) for parts in zip(*kept, strict=True)]


def _compared(first: _Evaluation, second: _Evaluation) -> ModelComparison:
    """Compare the answers to the images that both could read."""
    positions = {path: position for position, path in enumerate(second.files)}
    shared = [(path, mine, positions[path]) for mine, path in enumerate(first.files) if path in positions]
    report = second.report
    return ModelComparison(
        model=report.model,
        count=report.count,
        images_per_second=report.images_per_second,
        backend=report.backend,
        precision=report.precision,
        shared=len(shared),
        by_label=report.by_label,
        by_output=report.by_output,
        **{name: getattr(report, name) for name in FIGURES[report.task]},
        **first.task.compared(first.answers, second.answers, shared),
    )

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np

from densenet_deploy.artifacts import Artifact, StrPath, model_sha256
from densenet_deploy.errors import DataError, ImageError, UsageError
from densenet_deploy.options import or_default, require_range
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import BadImage, PreparedImages, record_bad
from densenet_deploy.runtime.preprocess import PreparedImage
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from densenet_deploy.serving.batch.described_runner import DescribedRunner
from densenet_deploy.serving.batch.engine import Engine
from densenet_deploy.serving.batch.plan import Shard, shards_of
from densenet_deploy.serving.batch.rows import Row
from densenet_deploy.serving.batch.shard_worker import JobSettings
from densenet_deploy.workflows.evaluation.report import FIGURES, BadFile, EvaluateReport, ModelComparison
from densenet_deploy.workflows.evaluation.tasks import TaskEvaluation, check_sources, task_of
from densenet_deploy.workflows.image_report import described_input, remarks
from densenet_deploy.workflows.job_workers import EngineOptions, serve_job, started_engine
from densenet_deploy.workflows.load import LoadOptions, facts_alone, is_file_name, load
from densenet_deploy.workflows.stages import Listener, in_notebook
from densenet_deploy.workflows.worker_model import WorkerModel

if TYPE_CHECKING:
    from densenet_deploy.model import Model

PROGRAM: Final = __name__
"""The module whose `main` is the process of a worker."""

Prepared = tuple[Path, PreparedImage]

_SHARD: Final = 256
"""Images that a worker is given at a time, about."""


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
        engine: `local`, this process, or `ray`, actors of a Ray cluster; the figures are the same.
        address, workers: of a Ray cluster; see `BatchJobOptions`.

    Raises:
        UsageError: if a number is out of range, `against_backend` is given without `against`, or an option of a cluster
            without the engine `ray`.
    """

    batch: int = 16
    max_bad: int = 0
    ground_truth: StrPath | None = None
    decode_threads: int | None = None
    against: StrPath | Model | None = None
    against_backend: str | None = None
    fast_decode: bool = False
    engine: str = "local"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 4096)
        require_range("max-bad", self.max_bad, 0, 10**9)
        if self.decode_threads is not None:
            require_range("decode-threads", self.decode_threads, 1, 1024)
        if self.against_backend is not None and self.against is None:
            raise UsageError(f"against-backend={self.against_backend}", "has no model to run", "add --against OTHER")
        EngineOptions(self.engine, self.address, self.workers)  # checks them
        if self.engine == "local" and self.workers is not None:
            raise UsageError(f"workers={self.workers}", "applies only to the engine ray", "add --engine ray")
        if self.engine == "ray" and self.decode_threads is not None:
            fix = "set --threads, the CPUs of each worker"
            raise UsageError(f"decode-threads={self.decode_threads}", "applies only to the engine local", fix)


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
    options, data, progress = or_default(options, EvaluateOptions), _folder_or_table(data), progress or in_notebook
    check_sources(data, None if options.ground_truth is None else Path(options.ground_truth))
    # idle threads of the backend must not keep a core from those that decode
    runner_options = dataclasses.replace(or_default(runner_options, RunnerOptions), spin=False)
    if is_file_name(options.against):
        Artifact.open(Path(options.against))  # reported before the first model runs
    with _opened(model, backend, device, runner_options, stated, options) as opened:
        first = _evaluated(_title(model), opened, data, options, progress)
    if options.against is None:
        return first.report
    facts = facts_alone(stated)
    with _opened(options.against, options.against_backend, device, runner_options, facts, options) as opened:
        _require_comparable(first, opened.runner, _title(options.against))
        second = _evaluated(_title(options.against), opened, data, options, progress)
    notes = (*first.report.notes, *(f"{second.report.model}: {note}" for note in second.report.notes))
    return dataclasses.replace(first.report, notes=notes, against=_compared(first, second))


@dataclass(frozen=True)
class _Opened:
    """An open runner; or the facts of one, and the workers that have it open. `sha256` is of the model's file."""

    runner: Runner
    engine: Engine | None = None
    sha256: str | None = None


@contextlib.contextmanager
def _opened(
    model: Any,
    backend: str | None,
    device: str | None,
    running: RunnerOptions,
    stated: LoadOptions,
    options: EvaluateOptions,
) -> Iterator[_Opened]:
    if isinstance(model, Runner):
        if stated:
            raise UsageError(", ".join(stated), "cannot be stated of a runner that is open", "give the model itself")
        if options.engine != "local":
            raise UsageError(f"engine={options.engine}", "cannot take a runner that is open", "give the model itself")
        yield _Opened(model)
    elif options.engine == "local":
        with open_runner(load(model, **stated), backend, device, running) as runner:
            yield _Opened(runner, sha256=_sha256(model))
    else:
        choice = EngineOptions(options.engine, options.address, options.workers)
        told = WorkerModel(backend=backend, device=device, options=running)
        settings = JobSettings(options.batch, 1)
        fast = options.fast_decode
        with started_engine(PROGRAM, choice, model, stated, told, settings, fast_decode=fast) as (engine, _):
            yield _Opened(DescribedRunner(engine.facts.runner, engine.facts.placement), engine, _sha256(model))


def _sha256(model: Any) -> str | None:
    """Return the SHA-256 of the file of a model, if it is one: `report` tells by it that a file changed since."""
    path = Path(model) if isinstance(model, (str, os.PathLike)) else getattr(model, "path", None)
    return model_sha256(path) if isinstance(path, Path) and path.is_file() else None


def _require_comparable(first: _Evaluation, runner: Runner, title: str) -> None:
    """Check the task and labels of the second model: classes are compared by index."""
    labels, task = runner.manifest.labels if runner.manifest is not None else (), Classifier(runner).meaning.task
    if task != first.report.task:
        why = f"is a {task} model, {first.report.model} a {first.report.task} model"
        raise DataError(title, why, "compare models of one task; `export` gives an ONNX file the task it should have")
    if labels and first.report.labels and labels != first.report.labels:
        fix = "compare models with the same labels in the same order"
        raise DataError(title, f"has other labels than {first.report.model}, or in another order", fix)


def _folder_or_table(data: object) -> Path:
    if not isinstance(data, (str, os.PathLike)):
        fix = "give a folder with a subfolder for each class, or a .csv file with the columns file and label"
        raise UsageError(f"data ({type(data).__name__})", "is not a path", fix)
    return Path(data)


def _title(model: Any) -> str:
    return str(model) if isinstance(model, (str, os.PathLike)) else str(getattr(model, "name", type(model).__name__))


@dataclass(frozen=True)
class _Evaluation:
    """The report on one model, and its answers to `files`, the images that could be read."""

    task: TaskEvaluation[Any]
    report: EvaluateReport
    answers: Any
    files: tuple[Path, ...]


def _evaluated(title: str, opened: _Opened, data: Path, options: EvaluateOptions, progress: Listener) -> _Evaluation:
    runner = opened.runner
    classifier = Classifier(runner, fast=options.fast_decode)
    task = task_of(classifier, title, runner.manifest)
    labelled = task.read(data, None if options.ground_truth is None else Path(options.ground_truth))
    paths = tuple(labelled.truth)
    start = time.perf_counter()
    if opened.engine is not None:
        found = _by_workers(opened.engine, paths, options, progress)
    else:
        found = _here(classifier, task, paths, options, progress)
    seconds = time.perf_counter() - start
    files = found.files
    if not files:
        raise DataError(data, "holds no readable image", "check the files")
    answers = task.answers(np.array([labelled.truth[path] for path in files]), found.kept)
    report = EvaluateReport(
        model=title,
        task=task.task,
        count=len(files),
        images_per_second=len(files) / seconds,
        seconds=seconds,
        **task.figures(answers),
        bad=tuple(BadFile(bad.path, bad.error.why) for bad in found.bad),
        backend=runner.placement.backend,
        device=runner.placement.device,
        precision=runner.placement.precision,
        labels=classifier.labels,
        sha256=opened.sha256,
        truth_sha256=labelled.sha256,
        input=described_input(classifier, runner.manifest),
        notes=(*remarks(classifier, runner.manifest), *labelled.remarks, *task.notes(answers)),
    )
    return _Evaluation(task, report, answers, files)


@dataclass(frozen=True)
class _Outputs:
    """The images that could be read, what a task keeps of the outputs for them, and the images that could not."""

    files: tuple[Path, ...]
    kept: Sequence[Array]
    bad: Sequence[BadImage]


def _here(
    classifier: Classifier,
    task: TaskEvaluation[Any],
    paths: Sequence[Path],
    options: EvaluateOptions,
    progress: Listener,
) -> _Outputs:
    """Run the model on all images, in batches by position: a bad image leaves its batch, as in a worker."""
    prepared = PreparedImages(
        paths,
        classifier.preprocessing,
        max_bad=options.max_bad,
        fast=options.fast_decode,
        ahead=2 * options.batch,
        threads=options.decode_threads,
    )
    places = {path: place for place, path in enumerate(paths)}
    batches = itertools.groupby(prepared, lambda image: places[image[0]] // options.batch)
    files, kept = kept_outputs(classifier, task, (list(batch) for _, batch in batches), len(paths), progress)
    return _Outputs(files, kept, prepared.bad)


def _by_workers(engine: Engine, paths: Sequence[Path], options: EvaluateOptions, progress: Listener) -> _Outputs:
    """Have workers run the model on the same batches as `_here`."""
    shards = tuple(shards_of(len(paths), options.batch * max(1, _SHARD // options.batch)))
    done: dict[int, list[Row]] = {}
    judged = _Judged(options.max_bad)

    def take(shard: Shard, rows: list[Row]) -> None:
        done[shard.number] = rows
        judged.take(done)
        progress("evaluate", sum(map(len, done.values())), len(paths))

    engine.run([str(path) for path in paths], shards, take, lambda _: None)
    return judged.outputs()


class _Judged:
    """The rows of shards in order, as far as they are there without a gap: so the same image exceeds `max_bad`."""

    def __init__(self, max_bad: int) -> None:
        self._max_bad, self._next = max_bad, 0
        self._good: list[Row] = []
        self._bad: list[BadImage] = []

    def take(self, done: Mapping[int, list[Row]]) -> None:
        """Add what has no gap before it. Raises DataError if more images are bad than may be."""
        while self._next in done:
            for row in done[self._next]:
                if row["error"] is None:
                    self._good.append(row)
                else:
                    error = ImageError(row["file"], row["error"], "repair or remove it")
                    record_bad(self._bad, BadImage(Path(row["file"]), error), self._max_bad)
            self._next += 1

    def outputs(self) -> _Outputs:
        """Return what all rows hold."""
        parts = zip(*(row["kept"] for row in self._good), strict=True)
        kept = [np.array([values for _, values in part], part[0][0]) for part in parts]
        return _Outputs(tuple(Path(row["file"]) for row in self._good), kept, self._bad)


@dataclass(frozen=True)
class _KeptRows:
    """Makes rows of what a task keeps of the outputs; see `serving.batch.shard_worker.Answers`."""

    task: TaskEvaluation[Any]

    def of_batch(self, files: Sequence[str], _images: Sequence[PreparedImage], outputs: Array) -> list[Row]:
        kept = self.task.kept(outputs)
        return [
            {"file": file, "error": None, "kept": [[str(part.dtype), part[place].tolist()] for part in kept]}
            for place, file in enumerate(files)
        ]

    def refused(self, file: str, error: str) -> Row:
        return {"file": file, "error": error}


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Be the process of a worker of a Ray cluster."""
    yield from serve_job(requests, lambda classifier, _: _KeptRows(task_of(classifier, "the model")))


def kept_outputs(
    classifier: Classifier,
    task: TaskEvaluation[Any],
    batches: Iterable[Sequence[Prepared]],
    count: int,
    progress: Listener,
) -> tuple[tuple[Path, ...], list[Array]]:
    """Return the files of `count` images, in order, and what the task keeps of the model's outputs for them."""
    files: list[Path] = []
    kept: list[tuple[Array, ...]] = []
    for batch in batches:
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
        sha256=report.sha256,
        shared=len(shared),
        by_label=report.by_label,
        by_output=report.by_output,
        **{name: getattr(report, name) for name in FIGURES[report.task]},
        **first.task.compared(first.answers, second.answers, shared),
    )

"""Batch jobs: every image that sources name, classified by workers into shards of rows on the disk.

The plan is fixed first: the order of the images, the shards, the batches. Then the shards that are missing are
classified and written whole, in any order, by any number of workers. A shard that is there is done, so a job that was
killed goes on with `resume`, to the bytes of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Unpack

from densenet_deploy.artifacts import StrPath, require_room
from densenet_deploy.errors import DataError, InputError, UsageError, counted, printable
from densenet_deploy.model import InputDescription
from densenet_deploy.options import or_default, require_range
from densenet_deploy.records import from_plain
from densenet_deploy.reports import line
from densenet_deploy.runtime.runner import Placement, RunnerOptions
from densenet_deploy.serving.batch.formats import format_named
from densenet_deploy.serving.batch.output import JobOutput, JobShards
from densenet_deploy.serving.batch.plan import PLAN, Plan, digest_of
from densenet_deploy.serving.batch.rows import PredictionRows
from densenet_deploy.serving.batch.shard_worker import JobSettings
from densenet_deploy.workflows.image_report import RanReport
from densenet_deploy.workflows.image_sources import image_names
from densenet_deploy.workflows.job_workers import EngineOptions, serve_job, started_engine
from densenet_deploy.workflows.load import LoadOptions
from densenet_deploy.workflows.stages import Listener, in_notebook
from densenet_deploy.workflows.worker_model import WorkerModel

PROGRAM: Final = __name__
"""The module whose `main` is the process of a worker."""


@dataclass(frozen=True)
class BatchJobOptions:
    """How a batch job is cut into shards, and what runs it.

    >>> BatchJobOptions(format="csv", workers=4).shard_size
    1000

    Attributes:
        shard_size: images per shard; what a killed worker has to do again.
        format: parquet, csv or jsonl; None takes the one of the file that is written, parquet in a folder.
        batch: images per call; None takes the model's fixed batch, or 16.
        engine, address, workers: see `job_workers.EngineOptions`.
        resume: go on with the job in `out`: only shards that are missing are classified.
        force: replace a job in `out`.

    Raises:
        UsageError: if a value is out of range or unknown, or two do not go together.
    """

    shard_size: int = 1000
    format: str | None = None
    batch: int | None = None
    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        require_range("shard-size", self.shard_size, 1, 10_000_000)
        if self.format is not None:
            format_named(self.format)
        if self.batch is not None:
            require_range("batch", self.batch, 1, 4096)
        EngineOptions(self.engine, self.address, self.workers)  # checks them
        if self.resume and self.force:
            raise UsageError("resume", "does not go together with force", "go on with a job, or replace it")

    @property
    def runs_on(self) -> EngineOptions:
        """What runs the workers."""
        return EngineOptions(self.engine, self.address, self.workers)


@dataclass(frozen=True, kw_only=True)
class BatchReport(RanReport):
    """What a batch job wrote.

    Attributes:
        rows: one for every image, also those of shards that were there before.
        bad: how many of them hold the reason why an image could not be read.
        out: the folder of the shards, or the file.
        shards: how many there are.
        resumed: how many of them were there before.
        seconds: of classifying and writing the others; the model was open before.
        images_per_second: of the others; None if there were none.
        batch: images per call.
    """

    kind: ClassVar[str] = "run"

    rows: int
    bad: int
    out: Path
    format: str
    task: str
    shards: int
    shard_size: int
    resumed: int
    seconds: float
    images_per_second: float | None
    engine: str
    workers: int
    batch: int

    def failure(self, max_bad: int | None) -> InputError | None:
        """The error to end a command with: more than `max_bad` images could not be read, or, if it is None, all."""
        allowed = self.rows - 1 if max_bad is None else max_bad
        if self.bad <= allowed or not self.rows:
            return None
        if max_bad is None:
            return DataError(self.out, f"none of {self.rows} images could be read", "see the column error of the rows")
        why = f"{self.bad} of {self.rows} images could not be read, allowed: {max_bad}"
        return DataError(self.out, why, "see the column error of the rows, or raise --max-bad")

    def to_text(self) -> str:
        """Return lines for people."""
        bad = f", {self.bad} of images that could not be read (column error)" if self.bad else ""
        kept = f", {self.resumed} were there" if self.resumed else ""
        speed = "nothing was left to do"
        if self.images_per_second is not None:
            speed = f"{self.images_per_second:.1f} images/s, {self.seconds:.1f} s"
        workers = f"{counted(self.workers, 'worker')} with {counted(self.threads, 'thread')}"
        return "\n".join(
            [
                line("wrote", printable(self.out)),
                line("rows", f"{self.rows}{bad}"),
                line("shards", f"{self.shards} of {self.shard_size} images{kept}"),
                line("input", self.input),
                line("speed", speed),
                f"({self.ran}, {workers}, engine {self.engine})",
            ]
        )


def run_batch(
    source: Any,
    images: Any,
    out: StrPath,
    job: BatchJobOptions | None = None,
    *,
    top_k: int = 5,
    fast_decode: bool = False,
    backend: str | None = None,
    device: str | None = None,
    options: RunnerOptions | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> BatchReport:
    """Classify images into rows on the disk; `predict` says what the arguments are, and what is raised."""
    job = job or BatchJobOptions()
    output = JobOutput.of(out, job.format, resume=job.resume, force=job.force)
    output.check()
    images = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    _require_kept(images, output.path)
    files = image_names(images)
    if not files:
        raise UsageError("images", "names none", "give at least one image, folder, pattern or table")
    with contextlib.ExitStack() as stack:
        lock_notes = stack.enter_context(output.held())
        require_room(output.folder / PLAN)
        progress("open the model")
        running = WorkerModel(backend=backend, device=device, options=or_default(options, RunnerOptions))
        settings = JobSettings(job.batch, top_k)
        started = started_engine(PROGRAM, job.runs_on, source, stated, running, settings, fast_decode=fast_decode)
        engine, model = stack.enter_context(started)
        facts = engine.facts
        plan = Plan(
            len(files),
            digest_of(files),
            job.shard_size,
            output.format,
            facts.layout,
            facts.batch,
            model.identity | _what_ran(facts.placement),
            facts.input,
        )
        rows = format_named(output.format)(facts.layout)
        work = JobShards(output, plan, rows, progress)
        work.begin(files)
        seconds = work.run(engine, files)
        work.finish()
    placement = dataclasses.asdict(facts.placement)
    notes = (*facts.placement.notes, *facts.notes, *lock_notes, *_idle_note(engine.workers, len(work.shards)))
    return BatchReport(
        rows=plan.images,
        bad=work.bad,
        out=output.path,
        format=output.format,
        task=facts.layout.task,
        shards=len(work.shards),
        shard_size=plan.shard_size,
        resumed=len(work.shards) - len(work.left),
        seconds=seconds,
        images_per_second=work.images_left / seconds if work.left else None,
        engine=job.engine,
        workers=engine.workers,
        batch=plan.batch,
        input=from_plain(InputDescription, facts.input),
        **placement | {"notes": notes},
    )


def _require_kept(sources: Sequence[StrPath], out: Path) -> None:
    """Refuse to replace a table of images by its rows."""
    for source in sources:
        if out.is_file() and Path(source).exists() and out.samefile(source):
            raise UsageError(f"out={out}", "is a source of the images", "choose another -o")


def _idle_note(workers: int, shards: int) -> tuple[str, ...]:
    """Return the line that says that there was not a shard for every worker, or nothing."""
    if not 0 < shards < workers:
        return ()
    return (f"{shards} of {workers} workers had a shard to do: a smaller shard size gives work to all",)


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Be the process of a worker."""
    yield from serve_job(requests, PredictionRows)


def _what_ran(placement: Placement) -> dict[str, object]:
    """Return what of a placement the bits of a row may depend on."""
    names = ("backend", "version", "device", "provider", "precision")
    return {name: getattr(placement, name) for name in names}

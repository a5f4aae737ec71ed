"""What a batch job leaves on the disk: the folder of its plan and shards, or the one file that they become."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import StrPath, os_errors_about, temporaries_of, write_file
from densenet_deploy.errors import DataError, OutputExistsError, UsageError
from densenet_deploy.packages import require_packages
from densenet_deploy.serving.batch.engine import Engine, Progress
from densenet_deploy.serving.batch.folder_lock import locked
from densenet_deploy.serving.batch.formats import FORMATS, RowFormat
from densenet_deploy.serving.batch.plan import PLAN, Plan, Shard
from densenet_deploy.serving.batch.rows import Row

log = logging.getLogger(__name__)

_DEFAULT_FORMAT: Final = "parquet"


@dataclass(frozen=True)
class JobOutput:
    """Where rows go.

    Attributes:
        path: what the caller named.
        folder: of the shards: `path`, or beside the file `path` until it is whole.
        format: see `FORMATS`.
    """

    path: Path
    folder: Path
    format: str
    resume: bool = False
    force: bool = False

    @classmethod
    def of(cls, out: StrPath, form: str | None, *, resume: bool, force: bool) -> JobOutput:
        """Return what `out` names; `form` is the format that was asked for, if any.

        Raises:
            UsageError: if it is not that of the file.
        """
        path, text = Path(out), os.fspath(out)
        suffixes = {kind.suffix: name for name, kind in FORMATS.items()}
        name = suffixes.get(path.suffix.lower())
        if name is None or text.endswith("/") or path.is_dir():
            return cls(path, path, form or _DEFAULT_FORMAT, resume, force)
        if form not in (None, name):
            raise UsageError(f"format={form}", f"is not that of {path.name}", "leave it out, or name a folder")
        return cls(path, path.with_name(f"{path.name}.parts"), name, resume, force)

    @property
    def is_file(self) -> bool:
        return self.folder != self.path

    def check(self) -> None:
        """Refuse what stands there, unless the job goes on with it or replaces it.

        Raises:
            OutputExistsError: naming it.
            DataError: if the plan that is there cannot be read.
            MissingPackageError: if a package that the format needs is not installed.
        """
        require_packages("scale", *FORMATS[self.format].packages)
        with os_errors_about(self.path):
            has_plan = (self.folder / PLAN).exists()
            if self.is_file and self.path.exists() and not self.force and not (self.resume and has_plan):
                fix = "it is the result of a job that was done: choose another -o, or replace it with --force"
                raise OutputExistsError(self.path, "exists", fix)
            if has_plan and not self.force and not self.resume:
                fix = "go on with it with --resume, replace it with --force, or choose another -o"
                raise OutputExistsError(self.folder, "holds a batch job", fix)
            named = self.shards_of_plan()
            for path in sorted(self.folder.glob("part-*")):
                if path.name not in named:
                    why = "is not of the batch job there" if has_plan else "is not of a batch job"
                    raise OutputExistsError(path, why, "move it away, or choose another -o")

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[str, ...]]:
        """Keep other jobs out of the folder during the block; yields the remark that this cannot be done, or nothing.

        Of a file, the folder that became it is removed.

        Raises:
            OutputExistsError: if another job is being run there, or has been done since `check`.
        """
        with locked(self.folder) as notes:
            self.check()
            yield notes
        if self.is_file:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def leftovers(self) -> Iterator[Path]:
        """Yield the temporary files of a job that was killed while it wrote a shard, or the file."""
        yield from self.folder.glob(".part-*.tmp")
        if self.is_file:
            yield from temporaries_of(self.path)

    def shards_of_plan(self) -> frozenset[str]:
        """Return the names of the shards of the plan that is there, which need not be; none without a plan.

        Raises:
            DataError: if the plan cannot be read.
        """
        if not (self.folder / PLAN).exists():
            return frozenset()
        plan = Plan.read(self.folder)
        if plan.format not in FORMATS:
            why = f"is not the plan of a batch job: it names the format {plan.format}"
            raise DataError(self.folder / PLAN, why, "choose another -o")
        return frozenset(shard.name for shard in plan.shards(FORMATS[plan.format].suffix))


class JobShards:
    """A plan, which of its shards are there, and what becomes of the others."""

    def __init__(self, output: JobOutput, plan: Plan, rows: RowFormat, progress: Progress) -> None:
        self._output, self._plan, self._format, self._progress = output, plan, rows, progress
        self._folder = output.folder
        self._lock = threading.Lock()
        self._done, self._start = 0, 0.0
        self.shards = tuple(plan.shards(rows.suffix))
        self.left: tuple[Shard, ...] = self.shards
        self.images_left = plan.images
        self.bad = 0

    def begin(self, files: Sequence[str]) -> None:
        """Write the plan, or find the shards of `files` that are there already.

        Raises:
            DataError: if the plan that is there is another one, or a shard is not of this one.
        """
        if (self._folder / PLAN).exists():
            if self._output.force:
                self._remove(self._output.shards_of_plan())
            else:
                self._plan.require_same(Plan.read(self._folder), self._folder)
        if not (self._folder / PLAN).exists():
            self._plan.write(self._folder)
        for leftover in self._output.leftovers():
            leftover.unlink(missing_ok=True)
        present = {shard for shard in self.shards if (self._folder / shard.name).exists()}
        for shard in present:
            images = files[shard.start : shard.start + shard.count]
            self.bad += self._format.bad_among(self._folder / shard.name, images)
        self.left = tuple(shard for shard in self.shards if shard not in present)
        self.images_left = sum(shard.count for shard in self.left)

    def run(self, engine: Engine, files: Sequence[str]) -> float:
        """Have the missing shards classified and written; return the seconds that took."""
        self._start = time.perf_counter()
        self._progress("run", 0, self.images_left)
        engine.run(files, self.left, self._write, self._step)
        return time.perf_counter() - self._start

    def finish(self) -> None:
        """Join the shards, if a single file was asked for.

        Raises:
            DataError: if the plan or a shard is gone.
        """
        for name in (PLAN, *(shard.name for shard in self.shards)):
            if not (self._folder / name).exists():
                why = "is gone: another program removed it while the job ran"
                raise DataError(self._folder / name, why, "go on with --resume, or begin again with another -o")
        if self._output.is_file:
            self._progress("join the shards")
            self._format.join([self._folder / shard.name for shard in self.shards], self._output.path)
            self._remove(shard.name for shard in self.shards)

    def _remove(self, shards: Iterable[str]) -> None:
        """Remove shards, and then the plan: nothing else that lies there."""
        with os_errors_about(self._folder):
            for name in (*shards, PLAN):
                (self._folder / name).unlink(missing_ok=True)

    def _write(self, shard: Shard, rows: list[Row]) -> None:
        write_file(self._folder / shard.name, self._format.encoded(rows))
        with self._lock:
            self.bad += sum(row["error"] is not None for row in rows)
        log.info("%s: %d images; %s", shard.name, shard.count, self._rate())

    def _step(self, count: int) -> None:
        with self._lock:
            self._done += count
            speed = self._done / (time.perf_counter() - self._start)
            self._progress(f"run ({speed:.0f} images/s)", self._done, self.images_left)

    def _rate(self) -> str:
        speed = self._done / (time.perf_counter() - self._start)
        left = (self.images_left - self._done) / speed if speed else 0
        return f"{self._done} of {self.images_left}, {speed:.1f} images/s, {left:.0f} s left"

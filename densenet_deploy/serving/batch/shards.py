"""A worker process that classifies shards and survives what kills it: its parent's side.

Where the process dies, in the crash of a decoder or for want of memory, a new one goes on at the first batch without
rows, carefully: it says which image it is about to read. An image at which it dies twice becomes a bad row. Where it
dies in the model, it is tried as often, and then the job ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from densenet_deploy.errors import DensenetDeployError, ResourceError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.serving.batch.rows import Row
from densenet_deploy.serving.batch.shard_worker import JobFacts, ShardRequest
from densenet_deploy.worker import Worker, WorkerDiedError, WorkerProgram, WorkerRaisedError

log = logging.getLogger(__name__)

RETRIES: Final = 2
"""How often an image is read again whose reading ended the process."""


@dataclass
class _Progress:
    """How far a shard is: its rows, the images known to be bad by place, and what has ended its processes."""

    files: Sequence[str]
    rows: list[Row] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    reading: int | None = None
    suspect: int | None = None
    deaths_elsewhere: int = 0
    rows_at_death: int = 0

    def judge(self, exc: DensenetDeployError) -> None:
        """Blame the image that was being read when `exc` ended the process; without one, raise the third `exc`."""
        if self.reading is None:
            is_further, self.rows_at_death = len(self.rows) > self.rows_at_death, len(self.rows)
            self.deaths_elsewhere = 1 if is_further else self.deaths_elsewhere + 1
            if self.deaths_elsewhere > RETRIES:
                raise exc
        elif self.reading == self.suspect:
            self.bad[self.reading] = f"ends the process that reads it ({exc.why.removeprefix('its process ')})"
        else:
            self.suspect = self.reading


class ShardProcess:
    """A process that classifies one shard after another, and is replaced when it dies.

    Args:
        program: opens the model, and answers with `Shards`.
    """

    def __init__(self, program: WorkerProgram) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._is_stopped = False
        self._worker: Worker | None = None
        self._facts: JobFacts | None = None

    def open(self) -> JobFacts:
        """Start the process, unless it runs, and return what it says about the model.

        Raises:
            DensenetDeployError: if the model cannot be opened.
        """
        self._facts = self._facts or self._started()
        return self._facts

    def classified(self, files: Sequence[str], step: Callable[[int], None] = lambda _: None) -> list[Row]:
        """Return a row for each of `files`; `step` is called with the number of rows that each batch adds.

        The process must be open.

        Raises:
            DensenetDeployError: if the model fails, or the process dies again and again without an image to blame.
        """
        progress = _Progress(files)
        is_careful = False
        while len(progress.rows) < len(files):
            try:
                self._attempt(progress, step, is_careful)
            except (WorkerDiedError, WorkerRaisedError, ResourceError) as exc:
                if self._is_stopped or (isinstance(exc, ResourceError) and exc.subject != "memory"):
                    raise
                log.info("%s; going on with a new process", exc)
                progress.judge(exc)
                is_careful = True
                self._end()
                self._started()
        return progress.rows

    def kill(self) -> None:
        """End the process, now and for good; a call of `classified` that is under way raises."""
        with self._lock:
            self._is_stopped = True
            if self._worker is not None:
                self._worker.kill()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._is_stopped = True
        self._end()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._worker is not None
        return self._worker.pid

    def _started(self) -> JobFacts:
        """Start a process that opens the model: again, if that one is killed meanwhile."""
        for attempt in range(RETRIES + 1):
            with self._lock:
                if self._is_stopped:
                    break
                worker = self._worker = self._program.started()
            try:
                return from_plain(JobFacts, worker.receive())
            except WorkerDiedError:
                self._end()
                if attempt == RETRIES:
                    raise
            except BaseException:
                self._end()
                raise
        raise WorkerDiedError(self._program.subject, "its process was stopped", "run it again")

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(at_once=True)

    def _attempt(self, progress: _Progress, step: Callable[[int], None], is_careful: bool) -> None:
        """Add the rows of what is left; `progress.reading` is where it died."""
        assert self._worker is not None
        first = len(progress.rows)
        bad = {str(place - first): why for place, why in progress.bad.items() if place >= first}
        progress.reading = None
        self._worker.send(to_plain(ShardRequest(tuple(progress.files[first:]), bad, is_careful)))
        while len(progress.rows) < len(progress.files):
            kind, value = self._worker.receive()
            if kind == "rows":
                progress.rows += value
                step(len(value))
            else:
                progress.reading = None if value is None else first + value

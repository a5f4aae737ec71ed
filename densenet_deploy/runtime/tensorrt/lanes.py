"""The lanes of one engine, lent to one thread each; when all are out and no more may be made, callers wait."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from densenet_deploy.runtime.tensorrt.engine import Engine
from densenet_deploy.runtime.tensorrt.lane import Lane


class Lanes:
    """At most `limit` lanes, one for each size of batch while they last. Freed with the last reference to this."""

    def __init__(self, engine: Engine, make: Callable[[], Lane], limit: int) -> None:
        self.engine = engine
        self._make = make
        self._limit = limit
        self._made = 0
        self._idle: list[Lane] = []
        self._change = threading.Condition()

    @contextlib.contextmanager
    def lend(self, profile: int, batch: int) -> Iterator[Lane]:
        """Lend a lane to this thread, set to `profile` and `batch` if there is one, else a new one while they last.

        A lane whose run failed is not used again.
        """
        self.engine.cuda.use(self.engine.gpu.index)  # the device belongs to the thread, and others may have changed it
        lane = self._take(profile, batch)
        try:
            yield lane
        except BaseException:
            lane.abandon()
            self._give_back(None)
            raise
        self._give_back(lane)

    def _take(self, profile: int, batch: int) -> Lane:
        with self._change:
            while not self._idle and self._made >= self._limit:
                self._change.wait()
            position = self._position_of(profile, batch)
            if position is not None:
                return self._idle.pop(position)
            if self._made >= self._limit:
                return self._idle.pop(0)  # the one that was used longest ago
            self._made += 1
        try:
            return self._make()
        except BaseException:
            self._give_back(None)
            raise

    def _position_of(self, profile: int, batch: int) -> int | None:
        """Where an idle lane with this setup is, which may have a graph."""
        for position, lane in enumerate(self._idle):
            if lane.setup and (lane.setup.profile, lane.setup.batch) == (profile, batch):
                return position
        return None

    def _give_back(self, lane: Lane | None) -> None:
        with self._change:
            if lane is None:
                self._made -= 1
            else:
                self._idle.append(lane)
            self._change.notify()

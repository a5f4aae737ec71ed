"""The lanes of one engine, one for each size of batch while they last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from densenet_deploy.runtime.pool import Pool
from densenet_deploy.runtime.tensorrt.engine import Engine
from densenet_deploy.runtime.tensorrt.lane import Lane


class Lanes:
    """At most `limit` lanes, lent to one thread each."""

    def __init__(self, engine: Engine, make: Callable[[], Lane], limit: int) -> None:
        self.engine = engine
        self._pool = Pool(make, limit)

    @contextlib.contextmanager
    def lend(self, profile: int, batch: int) -> Iterator[Lane]:
        """Lend a lane that is set to `profile` and `batch`, if there is one."""
        self.engine.cuda.use(self.engine.gpu.index)  # the device belongs to the thread, and others may have changed it
        with self._pool.lend(lambda lane: lane.is_set_to(profile, batch)) as lane:
            try:
                yield lane
            except BaseException:
                lane.abandon()
                raise

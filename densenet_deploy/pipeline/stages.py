"""Name and time the stages of a road, and tell whoever listens when one begins."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

Listener = Callable[[str], None]


def ignore(stage: str) -> None:
    """Listen to nothing."""


class Stages:
    """Seconds spent in each named stage, in order."""

    def __init__(self, listener: Listener = ignore) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block as the stage `name`."""
        self._listener(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        log.info("%s: %.2f s", name, self.seconds[name])

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

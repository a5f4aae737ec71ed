"""Name and time the stages of a workflow, and report their progress."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from densenet_deploy.notebook import NotebookBar

log = logging.getLogger(__name__)

Step = Callable[[int, int | None], None]
"""Called with how many steps of a stage are done, and how many there are (None: unknown)."""


class Listener(Protocol):
    """Called with the name of a stage when it begins, and after each step with how many of how many are done."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None: ...


def ignore(stage: str, done: int = 0, total: int | None = None) -> None:
    """Listen to nothing."""


_BAR: Final = NotebookBar()


def in_notebook(stage: str, done: int = 0, total: int | None = None) -> None:
    """Show the progress in a notebook, and nothing elsewhere: what workflows call unless they are told otherwise."""
    _BAR(stage, done, total)


class Stages:
    """Seconds spent in each named stage, in order; of one that is entered again, all of them.

    >>> stages = Stages()
    >>> with stages("calibrate") as step:
    ...     step(1, 512)
    """

    def __init__(self, listener: Listener = ignore) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextlib.contextmanager
    def __call__(self, name: str, cost: str | None = None) -> Iterator[Step]:
        """Time the block as the stage `name`; it is given what to call after each of its steps.

        Args:
            name: as reports call it.
            cost: what a long stage takes, and how to do without; listeners are told beforehand.
        """
        heard = name if cost is None else f"{name} ({cost})"
        self._listener(heard)
        if cost is not None:
            log.info("%s", heard)
        start = time.perf_counter()
        yield functools.partial(self._listener, heard)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log.info("%s: %.2f s", name, seconds)

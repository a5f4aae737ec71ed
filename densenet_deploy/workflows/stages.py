"""Name and time the stages of a workflow, and report their progress."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Final, Protocol

_SECONDS_PER_UPDATE: Final = 0.1

log = logging.getLogger(__name__)

Step = Callable[[int, int | None], None]
"""Called with how many steps of a stage are done, and how many there are (None: unknown)."""


class Listener(Protocol):
    """Called with the name of a stage when it begins, and after each step with how many of how many are done."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None: ...


def ignore(stage: str, done: int = 0, total: int | None = None) -> None:
    """Listen to nothing."""


class NotebookBar:
    """Shows the current stage below the cell of a notebook that runs, and nothing anywhere else.

    There is one bar, whichever workflow reports: it is updated in place, ten times a second at most, and disappears
    with the end of the cell. It needs nothing but IPython, which a notebook has.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._began = self._shown = 0.0
        self._stage = ""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        shell = _notebook()
        if shell is None:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, now
        elif now - self._shown < _SECONDS_PER_UPDATE:
            return
        self._shown = now
        self._show(shell, bar_html(stage, done, total, now - self._began))

    def _show(self, shell: Any, html: str) -> None:
        content = {"text/html": html, "text/plain": ""}
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(content, raw=True, display_id=True)
            shell.events.register("post_run_cell", self._end)
        else:
            self._handle.update(content, raw=True)

    def _end(self, _result: object = None) -> None:
        shell, handle, self._handle, self._stage = _notebook(), self._handle, None, ""
        if handle is not None:
            handle.update({"text/html": "", "text/plain": ""}, raw=True)
        if shell is not None:
            shell.events.unregister("post_run_cell", self._end)


def bar_html(stage: str, done: int, total: int | None, seconds: float) -> str:
    """Return a stage as HTML: its name, a bar, how much is done, and the seconds left at this pace.

    >>> bar_html("calibrate", 0, None, 0.0)
    'calibrate <progress></progress>'
    """
    if total is None:
        return f"{escape(stage)} <progress></progress>"
    left = f", {seconds / done * (total - done):.0f} s left" if done else ""
    return f'{escape(stage)} <progress value="{done}" max="{total}"></progress> {done}/{total}{left}'


def _notebook() -> Any:
    """Return IPython's shell where the code runs in the kernel of a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


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

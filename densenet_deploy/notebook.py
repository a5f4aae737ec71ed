"""What a notebook shows: text and tables as HTML without colours and scripts of their own, and a progress bar.

Text may come from files: control characters are escaped, and long text is cut.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any, Final

from densenet_deploy.errors import printable

LONGEST_LINE: Final = 10_000
_LONGEST_CELL: Final = 200
_SECONDS_PER_UPDATE: Final = 0.1


def preformatted(text: str) -> str:
    """Return lines of text, which scroll where they are longer than the notebook is wide."""
    joined = "\n".join(escape(printable(line, LONGEST_LINE)) for line in text.split("\n"))
    return f'<pre style="white-space:pre;overflow-x:auto">{joined}</pre>'


def notes_html(notes: Iterable[str]) -> str:
    """Return remarks, one below the other."""
    return "".join(f"<div><em>note: {escape(printable(note, LONGEST_LINE))}</em></div>" for note in notes)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return a table; the columns at the places `right` are aligned to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ["right" if place in right else "left" for place in range(len(cells))]
        shown = [escape(printable(cell, _LONGEST_CELL)) for cell in cells]
        return "".join(
            f'<{tag} style="text-align:{side}">{cell}</{tag}>' for side, cell in zip(sides, shown, strict=True)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    head = f"<thead><tr>{row(header, 'th')}</tr></thead>" if header else ""
    return f"<table>{head}<tbody>{body}</tbody></table>"


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

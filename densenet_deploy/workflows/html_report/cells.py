"""Numbers as people read them, and cells of tables that are sorted by the numbers themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from densenet_deploy.analysis.report.page import Cell, Span

UNKNOWN: Final = "–"
_MIB: Final = 2**20


def text(value: object, *, code: bool = False) -> Cell:
    """A cell that is sorted by what it says."""
    said = str(value)
    return Cell(said or UNKNOWN, said.lower() or None, code=code)


def number(value: float | None, form: Callable[[float], str]) -> Cell:
    """A cell that shows `form(value)`; a dash where the value is unknown."""
    return Cell(UNKNOWN, tone="quiet") if value is None else Cell(form(value), value)


def fixed(digits: int) -> Callable[[float], str]:
    """Return a form with so many digits behind the point."""
    return lambda value: f"{value:,.{digits}f}"


def milliseconds(value: float) -> str:
    """Three digits that matter, four of large numbers.

    >>> milliseconds(0.0512), milliseconds(1.257), milliseconds(15.84), milliseconds(1234.5)
    ('0.051', '1.26', '15.8', '1,234')
    """
    if value < 1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def points(value: float) -> str:
    """Percentage points in words.

    >>> points(1.0), points(0.5)
    ('1 point', '0.5 points')
    """
    return f"{value:g} point{'' if value == 1 else 's'}"


def with_interval(middle: float, interval: tuple[float, float] | None) -> str:
    """Say a time with its interval.

    >>> with_interval(1.25, (1.2, 1.31))
    '1.25 [1.20, 1.31]'
    """
    if interval is None:
        return milliseconds(middle)
    return f"{milliseconds(middle)} [{milliseconds(interval[0])}, {milliseconds(interval[1])}]"


def timed(middle: float, interval: tuple[float, float] | None, longest: float) -> Cell:
    """A time with its interval, which is drawn too, on an axis from 0 to `longest`."""
    low, high = interval or (middle, middle)
    return Cell(with_interval(middle, interval), middle, Span(low / longest, middle / longest, high / longest))


def mib(value: float) -> str:
    """Bytes as MiB.

    >>> mib(3 * 2**19)
    '1.5'
    """
    return f"{value / _MIB:,.1f}"


def percent(value: float) -> str:
    """A fraction in percent.

    >>> percent(0.99166)
    '99.17 %'
    """
    return f"{value:.2%}".replace("%", " %")


def cosine(value: float) -> str:
    """Six digits behind the point: cosines of good copies differ in the last of them."""
    return f"{value:.6f}"


def small(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.3g}"


def longest_of(highs: Sequence[float]) -> float:
    """The end of an axis that all of `highs` fit on."""
    return max(highs, default=0.0) or 1.0

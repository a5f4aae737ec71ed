"""Checks that all options share: their class, a number within its range, a word among its choices."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from densenet_deploy.errors import UnknownNameError, UsageError

N = TypeVar("N", int, float)
T = TypeVar("T")


def or_default(options: T | None, kind: type[T]) -> T:
    """Return `options`; None: those of `kind` that nobody changed.

    Raises:
        UsageError: if they are of another class.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise UsageError(f"options={options!r}", f"is not a {kind.__name__}", f"give {kind.__name__}(…)")
    return options


def require_range(name: str, value: N, low: N, high: N) -> N:
    """Return `value` if `low <= value <= high`; NaN is outside any range.

    Raises:
        UsageError: naming the option, its value and the range.
    """
    if not low <= value <= high:  # holds for NaN too
        raise UsageError(f"{name}={value}", "is out of range", f"give a value from {low} to {high}")
    return value


def require_choice(name: str, value: str, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        UnknownNameError: naming the nearest choice.
    """
    if value not in choices:
        raise UnknownNameError.among(name, value, choices)
    return value

"""How far the numbers of a regression are from the true ones: mean absolute error, and root of the mean square error.

Over several outputs both are taken over all numbers together, so that the RMSE is not a mean of roots (Hyndman and
Koehler 2006 on what the two say: the RMSE weighs large errors more). They have the unit of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutputErrors:
    """The errors of one output: its place, its name if it has one, and both errors in the unit of its numbers."""

    index: int
    label: str | None
    mae: float
    rmse: float


@dataclass(frozen=True)
class NumberAnswers:
    """What a model answered to N images: `truth` and `values`, (N, C) each."""

    truth: Doubles
    values: Doubles

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.truth)

    @property
    def mae(self) -> float:
        """The mean absolute error of all numbers."""
        return _mae(self._errors)

    @property
    def rmse(self) -> float:
        """The root of the mean square error of all numbers."""
        return _rmse(self._errors)

    def chosen(self, rows: Sequence[int]) -> NumberAnswers:
        """Return the answers to these images alone."""
        return NumberAnswers(self.truth[rows], self.values[rows])

    def by_output(self, labels: Sequence[str] = ()) -> tuple[OutputErrors, ...]:
        """Return the errors of every output, in order."""
        return tuple(
            OutputErrors(index, labels[index] if labels else None, _mae(errors), _rmse(errors))
            for index, errors in enumerate(self._errors.T)
        )

    @property
    def _errors(self) -> Doubles:
        return self.values - self.truth


def _mae(errors: Doubles) -> float:
    return float(np.abs(errors).mean())


def _rmse(errors: Doubles) -> float:
    largest = float(np.abs(errors).max())  # the square of a very large error would overflow
    return largest * math.sqrt(float(np.square(errors / largest).mean())) if largest else 0.0

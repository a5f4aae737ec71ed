"""MSE: the threshold T that minimises the mean squared error of quantizing, rounding and clipping together.

A value takes one of `levels` steps over [0, T], or of half as many where the channel is signed and the other half
serve the negative side. Measured in bins, the error of a value in bin i under a threshold of k bins is the same for
every channel, so that the errors of all channels under all thresholds are one matrix product, counts @ table.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.options import require_range
from densenet_deploy.quantization.observers.histogram import (
    ChannelHistogram,
    Doubles,
    HistogramObserver,
    HistogramOptions,
)
from densenet_deploy.quantization.observers.observer import ObserverOptions, observers

_CANDIDATES: Final = 256
_POINTS: Final = 8  # of a bin at which the error is taken: the narrowest rounding step matters little below an eighth


@dataclass(frozen=True)
class MSEOptions(HistogramOptions):
    """`levels` of the quantizer: 256 for 8 bits."""

    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("levels", self.levels, 4, 256)


@observers.register("mse")
class MSEObserver(HistogramObserver):
    """The least squared error among 256 thresholds, evenly spaced over the histogram."""

    options_type: ClassVar[type[ObserverOptions]] = MSEOptions

    def __init__(self, channels: int, options: MSEOptions | None = None) -> None:
        options = options or MSEOptions()
        super().__init__(channels, options)
        self._levels = options.levels

    def _thresholds(self, histogram: ChannelHistogram, is_signed: npt.NDArray[np.bool_]) -> Doubles:
        best = np.zeros(len(is_signed), np.intp)
        for rows, levels in ((is_signed, self._levels // 2), (~is_signed, self._levels)):
            errors = histogram.counts[rows] @ _error_table(histogram.bins, levels)
            best[rows] = errors.argmin(axis=1)
        return np.asarray((1 + best) * (histogram.bins // _CANDIDATES) * histogram.widths)


@functools.cache
def _error_table(bins: int, levels: int) -> Doubles:
    """Return the mean squared error, in bins², of the values in each column under each threshold, (1 + bins, 256)."""
    values = (np.arange(bins * _POINTS) + 0.5) / _POINTS
    table = np.zeros((1 + bins, _CANDIDATES))
    for candidate in range(_CANDIDATES):
        step = (1 + candidate) * (bins // _CANDIDATES) / (levels - 1)
        quantized = np.minimum(np.rint(values / step), levels - 1) * step
        table[1:, candidate] = np.square(values - quantized).reshape(bins, _POINTS).mean(axis=1)
    return table

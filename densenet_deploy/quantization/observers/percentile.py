"""Percentile: cover all but the largest few of the magnitudes, of all values of the channel, zeros included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

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


@dataclass(frozen=True)
class PercentileOptions(HistogramOptions):
    """`percentile`: per cent of the values to cover, 50 to 100."""

    percentile: float = 99.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("percentile", self.percentile, 50.0, 100.0)


@observers.register("percentile")
class PercentileObserver(HistogramObserver):
    """The upper edge of the bin in which the percentile of |x| lies: at most one bin above it."""

    options_type: ClassVar[type[ObserverOptions]] = PercentileOptions

    def __init__(self, channels: int, options: PercentileOptions | None = None) -> None:
        options = options or PercentileOptions()
        super().__init__(channels, options)
        self._percentile = options.percentile

    def _thresholds(self, histogram: ChannelHistogram, is_signed: npt.NDArray[np.bool_]) -> Doubles:  # noqa: ARG002
        covered = histogram.counts.cumsum(axis=1)
        least = math.ceil(self._percentile * histogram.total / 100)
        column = (covered < least).sum(axis=1)
        return np.asarray(column * histogram.widths)

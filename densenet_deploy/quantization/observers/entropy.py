"""Entropy: the threshold that loses the least information, by Kullback-Leibler divergence.

After S. Migacz, "8-bit inference with TensorRT" (GTC 2017). For a threshold of T bins, the reference P is the first T
bins with everything above added to the last of them. Q is the same T bins before that addition, merged into 128 groups,
each group's count then spread evenly over those of its bins that P does not leave empty. Both are normalized, and the T
with the least KL(P‖Q) wins; of equals, the largest.

Differences from that text: a threshold for every channel, not for the whole tensor; 1024 bins as wide as a power of
two instead of 2048 fitted to the maximum; every 32nd T is tried; where 128 does not divide T the groups differ by at
most one bin in width, instead of leaving the rest to the last; exact zeros, which lose nothing, are left out; a T
with a last group that was empty before the addition is skipped: its divergence is infinite. There are 128 groups for
unsigned channels too: 1024 bins could not tell their 256 levels apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.quantization.observers.histogram import ChannelHistogram, Doubles, HistogramObserver
from densenet_deploy.quantization.observers.observer import observers

_GROUPS: Final = 128
_CANDIDATES_PER_HISTOGRAM: Final = 32


@observers.register("entropy")
class EntropyObserver(HistogramObserver):
    """The least divergence among thresholds from 128 bins up to all."""

    def _thresholds(self, histogram: ChannelHistogram, is_signed: npt.NDArray[np.bool_]) -> Doubles:  # noqa: ARG002
        counts = np.ascontiguousarray(histogram.counts[:, 1:].T, np.float64)
        sums = _Sums(_running(counts), _running(counts > 0), _running(counts * _log(counts)))
        candidates = histogram.bins - histogram.bins // _CANDIDATES_PER_HISTOGRAM * np.arange(_CANDIDATES_PER_HISTOGRAM)
        candidates = candidates[candidates >= _GROUPS]
        divergences = np.stack([sums.divergence(int(candidate)) for candidate in candidates])
        return np.asarray(candidates[divergences.argmin(axis=0)] * histogram.widths)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over the first 0, 1, 2, … bins, (1 + bins, C): the count, the number of bins that are not empty, and Σ c ln c.

    Sums over bins become differences of these: Σ P ln P is one up to T, and Σ P ln Q = Σ_g P_g ln(S_g / n_g), where
    group g has the count S_g in n_g bins that are not empty, and P_g is S_g, in the last group with all above T added.
    """

    count: Doubles
    filled: Doubles
    information: Doubles

    def divergence(self, threshold: int) -> Doubles:
        """Return n·KL(P‖Q) + n ln n, (C,), with the number of values n, which is the same for every threshold."""
        edges = np.rint(np.linspace(0, threshold, _GROUPS + 1)).astype(np.intp)
        total, inside = self.count[-1], self.count[threshold]
        above, last = total - inside, inside - self.count[threshold - 1]
        groups, spread = np.diff(self.count[edges], axis=0), np.diff(self.filled[edges], axis=0)
        is_impossible = (groups[-1] == 0) & (above > 0)
        spread[-1] += (last == 0) & (above > 0)
        mean_information = _log(groups / np.maximum(spread, 1))
        own = self.information[threshold - 1] + (last + above) * _log(last + above)
        cross = (groups * mean_information).sum(axis=0) + above * mean_information[-1]
        return np.where(is_impossible, np.inf, own - cross + total * _log(inside))


def _running(values: npt.NDArray[np.bool_] | Doubles) -> Doubles:
    """Return the sums of the first 0, 1, 2, … rows."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def _log(values: Doubles) -> Doubles:
    """Return ln(x) of counts, and of means of counts over bins that are not empty; 0 for 0."""
    return np.log(np.where(values > 0, values, 1.0))

"""The entropy observer against a transcription of its definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.quantization.observers.entropy import EntropyObserver
from densenet_deploy.quantization.observers.histogram import HistogramOptions
from tests.quantization.observers.channels import observed, sparse_counts, with_counts


def _divergence(counts: np.ndarray, bins: int) -> float:
    """KL(P‖Q) as Migacz's slides compute it, for one channel and a threshold of `bins` bins."""
    reference = counts[:bins].astype(np.float64)
    reference[-1] += counts[bins:].sum()
    edges = np.rint(np.linspace(0, bins, 129)).astype(int)
    groups, filled = (np.add.reduceat(array, edges[:-1]) for array in (counts[:bins], (reference > 0).astype(int)))
    candidate = np.repeat(groups / np.maximum(filled, 1), np.diff(edges)) * (reference > 0)
    if (candidate[reference > 0] == 0).any():
        return np.inf
    p, q = reference[reference > 0] / reference.sum(), candidate[reference > 0] / candidate.sum()
    return float((p * np.log(p / q)).sum())


def _thresholds(counts: np.ndarray) -> list[int]:
    """What the observer finds for counts (C, bins) of bins 1 wide; the whole histogram is never quite reached."""
    bins = counts.shape[1]
    found = with_counts(EntropyObserver, counts, 0.0, HistogramOptions(bins=bins)).ranges().high
    return found.round().astype(int).tolist()


@pytest.mark.parametrize("bins", [256, 1024])
def test_no_other_threshold_diverges_less(bins):
    counts = sparse_counts(120, bins, seed=bins)
    for channel, found in zip(counts, _thresholds(counts), strict=True):
        assert (found % (bins // 32), found >= 128) == (0, True)
        best = min(_divergence(channel, bins * tries // 32) for tries in range(32 * 128 // bins, 33))
        # sums in another order: equal divergences may differ in their last bits
        assert _divergence(channel, found) == pytest.approx(best, rel=1e-9, abs=1e-12)


def _channel(bins: int, **counts: int | list[int]) -> np.ndarray:
    channel = np.zeros(bins, int)
    for place, count in counts.items():
        channel[int(place[1:]) :][: np.size(count)] = count
    return channel


def test_of_equal_thresholds_the_largest_wins():
    one_value = _channel(1024, _20=7)  # every Q is P: nothing is merged
    nothing = _channel(1024)
    assert _thresholds(np.stack([one_value, nothing])) == [1024, 1024]


def test_128_bins_are_the_least():
    """Wider groups merge what differs from bin to bin; 100 bins would lose as little."""
    rough = [1, 1000] * 50
    assert _thresholds(_channel(1024, _0=[*rough, *[0] * 27, 1], _1000=1)[None]) == [128]
    assert _thresholds(_channel(256, _0=[*rough, *[0] * 27, 1], _250=1)[None]) == [128]


def test_a_threshold_that_would_divide_by_an_empty_group_is_skipped_and_one_that_cuts_nothing_off_is_not():
    rng = np.random.default_rng(0)
    counts = _channel(256, _0=rng.integers(1, 1000, 160).tolist(), _168=rng.integers(1, 1000, 40).tolist())
    # 160 < T ≤ 168 bins end in an empty group, with values above
    assert _divergence(counts, 168) == np.inf
    assert np.isfinite(_divergence(counts, 256))
    best = min(range(256, 127, -8), key=lambda bins: _divergence(counts, bins))
    assert _thresholds(counts[None]) == [best]


def test_zeros_are_left_out_and_an_outlier_is_cut_off():
    rng = np.random.default_rng(3)
    data = rng.uniform(0, 1, (64, 2, 16, 16)).astype(np.float32)
    data[:, :, ::2] = 0
    data[0, 1, 0, 0] = 4.0
    high = observed(EntropyObserver, data, options=HistogramOptions(pixels=256)).ranges().high
    assert high[0] == data[:, 0].max()
    assert high[1] == 1.0  # of the thresholds n/8

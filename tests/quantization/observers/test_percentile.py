"""The percentile observer: the upper edge of the bin that holds the percentile of the magnitudes."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.quantization.observers.percentile import PercentileObserver, PercentileOptions
from tests.quantization.observers.channels import observed, with_counts


def _threshold(percentile: float, *channels: dict[int, int], bins: int = 256) -> list[float]:
    """What is covered of channels with 5 zeros and these counts by bin, each bin 1 wide."""
    counts = np.array([[channel.get(number, 0) for number in range(1, bins + 1)] for channel in channels])
    options = PercentileOptions(bins=bins, percentile=percentile)
    return with_counts(PercentileObserver, counts, 0.0, options).ranges().high.tolist()


@pytest.mark.parametrize(
    ("percentile", "covered"),
    [
        (50.0, 0.0),  # 5 of 10 are zeros
        (50.001, 3.0),
        (60.0, 3.0),
        (60.001, 4.0),
        (90.0, 4.0),
        (90.001, 200.0),
        (100.0, 200.0),
    ],
)
def test_so_many_values_are_covered_zeros_included_and_not_one_more(percentile, covered):
    assert _threshold(percentile, {3: 1, 4: 3, 200: 1}) == [covered]


def test_channels_are_counted_by_themselves():
    assert _threshold(90.0, {3: 1, 4: 3, 200: 1}, {100: 5}, {1: 4, 7: 1}) == [4.0, 100.0, 1.0]


def test_a_share_that_is_a_whole_number_is_that_number():
    """55/100 · 100 is 55.00000000000001."""
    assert _threshold(55.0, {2: 50, 9: 45}) == [2.0]


def test_bins_are_as_wide_as_the_channel_needs():
    data = np.float32([[0.1, 0.2, 0.3, 0.9], [-40.0, 20.0, 10.0, 100.0]])[None]
    ranges = observed(PercentileObserver, data, options=PercentileOptions(bins=256, percentile=75.0)).ranges()
    # ⌈0.3·256⌉/256, and 40 is an edge of bins of 128/256; 0.3 itself is not
    assert ranges.high.tolist() == [77 / 256, 40.0]
    assert ranges.low.tolist() == [np.float32(0.1), -40.0]


def test_the_hundredth_percentile_clips_nothing():
    data = np.random.default_rng(0).laplace(size=(3, 4, 5)).astype(np.float32)
    ranges = observed(PercentileObserver, data, options=PercentileOptions(percentile=100.0)).ranges()
    assert ranges.low.tolist() == data.min(axis=(0, 2)).tolist()
    assert ranges.high.tolist() == data.max(axis=(0, 2)).tolist()


def test_one_value_in_ten_thousand_is_cut_off_where_nothing_else_is_asked():
    options = PercentileOptions()
    assert (options.percentile, options.bins, options.pixels) == (99.99, 1024, 128)
    counts = np.zeros((2, 1024))
    counts[:, 6], counts[:, 900] = 9994, 1
    counts[1, 900] = 2
    observer = with_counts(PercentileObserver, counts, 0.0, options)
    assert observer.ranges().high.tolist() == [7.0, 7.0]
    counts[0, 6], counts[0, 900] = 9993, 2
    assert with_counts(PercentileObserver, counts, 0.0, options).ranges().high[0] == 901.0


@pytest.mark.parametrize("percentile", [49.9, 100.1])
def test_a_percentile_is_from_50_to_100(percentile):
    with pytest.raises(UsageError) as caught:
        PercentileOptions(percentile=percentile)
    assert caught.value.subject == f"percentile={percentile}"


def test_its_histogram_has_the_options_of_histograms():
    with pytest.raises(UnknownNameError):
        PercentileOptions(bins=1000)

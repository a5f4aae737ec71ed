"""Histograms of magnitudes: exact counts whatever came first, and the observers that clip by them."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import DataError, UnknownNameError, UsageError
from densenet_deploy.quantization.observers.histogram import ChannelHistogram, HistogramOptions, pixel_step
from densenet_deploy.quantization.observers.mse import MSEObserver, MSEOptions
from densenet_deploy.quantization.observers.percentile import PercentileObserver, PercentileOptions
from tests.quantization.observers.channels import columns, observed

# --- options


@pytest.mark.parametrize("bins", [256, 512, 1024, 2048, 4096, 8192])
def test_bins_are_a_power_of_two(bins):
    assert HistogramOptions(bins=bins).bins == bins
    for other in (bins - 1, bins // 4 if bins < 1024 else bins * 16):
        with pytest.raises(UnknownNameError) as caught:
            HistogramOptions(bins=other)
        assert (caught.value.subject, caught.value.why) == (str(other), "unknown bins")


@pytest.mark.parametrize(("pixels", "beyond"), [(1, 0), (2**20, 2**20 + 1)])
def test_one_to_2_to_the_20_pixels_are_counted(pixels, beyond):
    assert HistogramOptions(pixels=pixels).pixels == pixels
    with pytest.raises(UsageError) as caught:
        HistogramOptions(pixels=beyond)
    assert caught.value.subject == f"pixels={beyond}"


def test_the_defaults():
    assert HistogramOptions() == HistogramOptions(bins=1024, pixels=128)


# --- counts


def _counts(histogram: ChannelHistogram) -> list[dict[int, int]]:
    """The counts of each channel by column, without empty ones."""
    return [{int(column): int(row[column]) for column in np.flatnonzero(row)} for row in histogram.counts]


def _added(*arrays: np.ndarray, bins: int = 256) -> ChannelHistogram:
    """A histogram of arrays (N, C, P), added one after the other."""
    histogram, peaks = ChannelHistogram.empty(arrays[0].shape[1], bins), np.float32(0)
    for array in arrays:
        peaks = np.maximum(peaks, np.abs(array).max(axis=(0, 2)))
        histogram.add(array, peaks)
    return histogram


def test_an_empty_histogram():
    histogram = ChannelHistogram.empty(3, 512)
    assert (histogram.bins, histogram.total) == (512, 0)
    assert (histogram.counts.shape, histogram.counts.dtype) == ((3, 513), np.uint32)
    assert histogram.exponents.tolist() == [-64, -64, -64]
    assert histogram.widths.tolist() == [2.0**-73] * 3


def test_a_bin_holds_its_upper_edge_and_the_first_column_the_zeros():
    histogram = _added(columns([0, -0.0, 0.001, -1.0, 1.5, 2.0, -2.001, 255.5], [0, 0, 0, 0, 0, 0.25, 0.26, 0.99]))
    assert histogram.exponents.tolist() == [8, 0]
    assert histogram.widths.tolist() == [1.0, 1 / 256]
    assert _counts(histogram) == [{0: 2, 1: 2, 2: 2, 3: 1, 256: 1}, {0: 5, 64: 1, 67: 1, 254: 1}]
    assert histogram.total == 8


@pytest.mark.parametrize(("peak", "exponent"), [(0.99, 0), (1.0, 1), (1.01, 1), (2.0, 2), (2.0**-65, -64)])
def test_the_last_edge_is_the_first_power_of_two_above_the_largest_value(peak, exponent):
    histogram = _added(columns([0.0]), columns([0.74 * peak]), columns([-peak]))
    assert histogram.exponents.tolist() == [exponent]
    places = [0, *(int(np.ceil(np.float32(part * peak) * 256 / 2.0**exponent)) for part in (0.74, 1))]
    assert _counts(histogram) == [dict.fromkeys(places, 1)]


def test_counts_are_those_of_the_final_width_from_the_start():
    values = np.float32([0.3, 0, 0.26, 0.25, 1.5, -7.9, 0, 300.0])
    histogram = _added(*values.reshape(-1, 1, 1, 1))
    # 300 < 2^9, so the width is 2; the columns are ⌈|x| / 2⌉
    assert _counts(histogram) == [{0: 2, 1: 4, 4: 1, 150: 1}]
    assert histogram.widths.tolist() == [2.0]


@pytest.mark.parametrize("doublings", [1, 2, 7, 8, 9, 40, 127])
def test_neighbours_merge_in_pairs_until_one_bin_holds_all(doublings):
    first = np.float32([0.0, 1 / 256, 2 / 256, 3 / 256, 100 / 256, 255 / 256])
    last = np.nextafter(np.float32(2.0**doublings), np.float32(0))
    histogram = _added(first.reshape(1, 1, -1), last.reshape(1, 1, 1))
    wanted = np.bincount([*(int(np.ceil(value * 256 / 2.0**doublings)) for value in first), 256], minlength=257)
    assert histogram.counts[0].tolist() == wanted.tolist()


def test_channels_grow_by_themselves():
    histogram = _added(columns([0.75, 0.5], [0.75, 0.5], [0.0, 0.0]), columns([1.5, 0.75], [0.75, 0.0], [0.0, 3.0]))
    assert histogram.exponents.tolist() == [1, 0, 2]
    assert _counts(histogram) == [{64: 1, 96: 2, 192: 1}, {0: 1, 128: 1, 192: 2}, {0: 3, 192: 1}]


def test_a_channel_that_is_zero_so_far_keeps_the_finest_bins_while_others_grow():
    histogram = _added(columns([0.75], [0.0]), columns([0.0], [2.0**-60]))
    assert histogram.exponents.tolist() == [0, -59]
    assert _counts(histogram) == [{0: 1, 192: 1}, {0: 1, 128: 1}]


def test_samples_are_counted_together():
    histogram = _added(np.float32([[[1, 2, 3]], [[3, 2, 5]]]))
    assert _counts(histogram) == [{32: 1, 64: 2, 96: 2, 160: 1}]
    assert histogram.total == 6


def test_some_channels_of_a_histogram():
    whole = _added(columns([1.0], [3.0], [7.0], [15.0]))
    part = whole.of(slice(1, 3))
    assert part.exponents.tolist() == [2, 3]
    assert _counts(part) == _counts(whole)[1:3]
    assert part.widths.tolist() == [4 / 256, 8 / 256]


def test_a_bin_never_overflows():
    """Of 2^32 - 4 zeros and three more values all could be in one bin; one with a fourth would be 0 again."""
    histogram = ChannelHistogram.empty(1, 256)
    histogram.counts[0, 0] = 2**32 - 4
    with pytest.raises(DataError):
        histogram.add(np.zeros((2, 1, 2), np.float32), np.float32([0]))
    assert histogram.total == 2**32 - 4
    histogram.add(np.zeros((3, 1, 1), np.float32), np.float32([0]))
    assert histogram.counts[0, 0] == 2**32 - 1
    with pytest.raises(DataError):
        histogram.add(np.zeros((1, 1, 1), np.float32), np.float32([0]))


# --- which pixels are counted


@pytest.mark.parametrize(
    ("image", "pixels", "step"),
    [
        ((), 1, 1),
        ((7, 7), 49, 1),
        ((7, 7), 48, 2),
        ((7, 7), 7, 8),  # not 7, in which only one column would take part
        ((56, 56), 128, 25),
        ((4, 4), 8, 3),
        ((3, 5), 5, 3),  # prime to the width is enough
        ((4, 4, 9), 50, 4),
        ((9,), 4, 4),
        ((9,), 1, 10),
    ],
)
def test_every_kth_pixel_is_counted_with_k_prime_to_the_width(image, pixels, step):
    assert pixel_step(image, pixels) == step


def test_counted_pixels_are_every_kth_of_each_channel_and_sample():
    data = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    observer = observed(PercentileObserver, data, options=PercentileOptions(bins=256, pixels=4))
    counts = observer.state()["counts"]
    for channel, seen in enumerate(([0, 3, 6, 9, 24, 27, 30, 33], [12, 15, 18, 21, 36, 39, 42, 45])):
        assert (np.flatnonzero(counts[channel]) / 4).tolist() == seen  # bins of 64/256
        assert counts[channel].sum() == 8


# --- observers that clip


@pytest.mark.parametrize("threshold_of", [(0.5, 1), (4.0, 8)])
def test_both_sides_are_clipped_at_one_threshold_never_beyond_the_extremes(threshold_of):
    middle, extreme = threshold_of
    data = columns(
        [-extreme, middle, -middle, extreme / 2], [middle / 2, middle, -middle, -middle], [extreme, middle, 0, 0]
    )
    ranges = observed(PercentileObserver, data, options=PercentileOptions(bins=256, percentile=50.0)).ranges()
    assert ranges.low.tolist() == [-middle, -middle, 0]
    assert ranges.high.tolist() == [middle, middle, 0]
    assert (ranges.low.dtype, ranges.high.dtype) == (np.float32, np.float32)


def test_a_threshold_beyond_the_largest_magnitude_is_that_magnitude():
    data = columns([-3.0, 1.0], [2.9, 3.0], [-3.0, -2.9])  # thresholds are whole multiples of 4/256
    data[:, :, 1:] += np.float32(0.001)
    ranges = observed(PercentileObserver, data, options=PercentileOptions(bins=256, percentile=100.0)).ranges()
    assert ranges.low.tolist() == data.min(axis=(0, 2)).tolist()
    assert ranges.high.tolist() == data.max(axis=(0, 2)).tolist()


def test_thresholds_of_many_channels_are_each_their_own():
    data = (np.arange(1, 131, dtype=np.float32)[:, None] * [1.0, 1.0, 2.0]).astype(np.float32)[None]
    options = PercentileOptions(bins=8192, percentile=60.0)
    assert observed(PercentileObserver, data, options=options).ranges().high.tolist() == list(range(1, 131))


def test_a_channel_is_signed_only_if_it_went_below_zero():
    """MSE asks: at 4 levels a signed channel has one step on either side, and others three."""
    values = np.repeat([0.9975, 0.665, 0.3325, 0.0], 4)
    channels = np.tile(values, (4, 1))
    channels[1, -1], channels[2, -4:], channels[3, -1] = -0.0, 0.3325, -0.001
    high = observed(MSEObserver, columns(*channels), options=MSEOptions(levels=4)).ranges().high
    assert high[:3] == pytest.approx([0.9975] * 3, abs=1 / 256)
    assert high[3] == pytest.approx((0.9975 + 0.665) / 2, abs=1 / 256)  # which both become


def test_dead_channels_and_the_largest_float_are_counted():
    largest = float(np.finfo(np.float32).max)
    ranges = observed(PercentileObserver, columns([0, 0], [largest, largest], [-largest, 0])).ranges()
    assert ranges.low.tolist() == [0, largest, -largest]
    assert ranges.high.tolist() == [0, largest, 0]


def test_an_option_left_out_has_its_default():
    observer = observed(PercentileObserver, np.ones((1, 1, 129), np.float32))
    assert observer.state()["counts"].shape == (1, 1025)
    assert observer.state()["counts"].sum() == 65  # at most 128: every second


def test_state_goes_into_another_observer_as_a_copy():
    first = observed(PercentileObserver, columns([1.0, 2.0]))
    state = first.state()
    assert sorted(state) == ["counts", "exponents", "high", "low"]
    assert state["exponents"].tolist() == [2]
    before = {name: array.copy() for name, array in state.items()}
    second = PercentileObserver(1)
    second.restore(state)
    second.update(columns([100.0, 3.0]))
    assert second.state()["counts"].sum() == 4
    for name, array in before.items():
        np.testing.assert_array_equal(first.state()[name], array)
    second.restore(before)
    assert second.ranges().high == [2.0]
    before["counts"][:] = 0
    before["exponents"][:] = 0
    assert second.state()["counts"].sum() == 2
    assert second.state()["exponents"].tolist() == [2]


def test_a_sample_of_the_pixels_gives_about_the_threshold_of_all():
    data = np.random.default_rng(0).laplace(size=(64, 2, 32, 32)).astype(np.float32)
    few, all_ = (
        observed(PercentileObserver, data, options=PercentileOptions(percentile=99.0, pixels=pixels)).ranges().high
        for pixels in (128, 1024)
    )
    # 64 · 111 of 65536 values: the 99th percentile of a Laplacian, 4.6 scales, then scatters by √(99/7104) = 0.12
    # scales, 2.6 %. Four times that does not happen.
    np.testing.assert_allclose(few, all_, rtol=0.11)

"""Every observer against the same arithmetic on all data at once; then what all of them owe: no order, exact resume."""

import itertools

import numpy as np
import pytest

from densenet_deploy.errors import DataError, FeedError, UnknownNameError, UsageError
from densenet_deploy.quantization.observers.entropy import EntropyObserver
from densenet_deploy.quantization.observers.histogram import ChannelHistogram, HistogramOptions, pixel_step
from densenet_deploy.quantization.observers.minmax import MinMaxObserver, MinMaxOptions
from densenet_deploy.quantization.observers.mse import MSEObserver, MSEOptions
from densenet_deploy.quantization.observers.observer import observers
from densenet_deploy.quantization.observers.percentile import PercentileObserver, PercentileOptions

EVERY_PIXEL = 2**20
KINDS = sorted(observers.items().values(), key=lambda kind: kind.__name__)
CLIPPING = [kind for kind in KINDS if issubclass(kind.options_type, HistogramOptions)]


def heavy_tailed(channels=6, count=40, size=12, seed=0):
    """Laplacian activations of scales 0.01, 0.1, 1 …, (count, channels, size, size); odd channels after a ReLU."""
    rng = np.random.default_rng(seed)
    data = rng.laplace(size=(count, channels, size, size)).astype(np.float32)
    data[:, 1::2] = np.maximum(data[:, 1::2], 0)
    return data * np.float32(10.0 ** np.arange(-2, channels - 2)).reshape(-1, 1, 1)


def observe(kind, data, *, parts=1, options=None, order=None):
    observer = kind(data.shape[1], options)
    for part in np.array_split(data if order is None else data[order], parts):
        observer.update(part)
    return observer


def threshold(observer):
    ranges = observer.ranges()
    return np.maximum(-ranges.low, ranges.high).astype(np.float64)


def by_channel(data):
    return data.swapaxes(0, 1).reshape(data.shape[1], -1).astype(np.float64)


def assert_same(observer, other):
    ours, theirs = observer.ranges(), other.ranges()
    np.testing.assert_array_equal(ours.low.view(np.int32), theirs.low.view(np.int32))
    np.testing.assert_array_equal(ours.high.view(np.int32), theirs.high.view(np.int32))


EXACT = MinMaxOptions(headroom=0.0)

# --- correct


def test_the_four_observers_are_found():
    assert observers.names() == ("entropy", "minmax", "mse", "percentile")


def test_min_max_without_headroom_is_exact():
    data = heavy_tailed()
    ranges = observe(MinMaxObserver, data, parts=7, options=EXACT).ranges()
    np.testing.assert_array_equal(ranges.low, data.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(ranges.high, data.max(axis=(0, 2, 3)))
    assert ranges.low.dtype == ranges.high.dtype == np.float32


def test_headroom_widens_the_sides_that_were_reached():
    data = np.zeros((40, 3, 2, 2), np.float32)
    data[3, 0, 0, 0], data[4, 0, 1, 1], data[5, 1, 0, 0], data[6, 2, 0, 1] = -2, 6, 8, -4
    ranges = observe(MinMaxObserver, data, options=MinMaxOptions(headroom=0.25)).ranges()
    np.testing.assert_array_equal(ranges.low, [-4, 0, -5])
    np.testing.assert_array_equal(ranges.high, [8, 10, 0])


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9, 99.99])
def test_a_percentile_is_at_most_one_bin_above_numpy_s(percentile):
    data = heavy_tailed()
    options = PercentileOptions(percentile=percentile, pixels=EVERY_PIXEL)
    found = threshold(observe(PercentileObserver, data, parts=9, options=options))
    wanted = np.percentile(np.abs(by_channel(data)), percentile, axis=1, method="inverted_cdf")
    width = 2.0 ** np.ceil(np.log2(np.abs(data).max(axis=(0, 2, 3)))) / options.bins
    assert (found >= wanted * (1 - 1e-7)).all()  # the threshold is rounded to float32
    assert (found <= wanted + width).all()


def test_the_hundredth_percentile_clips_nothing():
    data = heavy_tailed()
    everything = observe(PercentileObserver, data, options=PercentileOptions(percentile=100.0, pixels=EVERY_PIXEL))
    assert_same(everything, observe(MinMaxObserver, data, options=EXACT))


def squared_error(values, limit, steps):
    step = limit / steps
    quantized = np.clip(np.rint(values / step), -steps, steps) * step
    return np.square(values - quantized).mean()


@pytest.mark.parametrize("levels", [16, 256])
def test_mse_is_as_good_as_the_best_threshold_tried_on_the_data_itself(levels):
    data = heavy_tailed()
    found = threshold(observe(MSEObserver, data, options=MSEOptions(levels=levels, pixels=EVERY_PIXEL)))
    for channel, (values, limit) in enumerate(zip(by_channel(data), found, strict=True)):
        steps = levels - 1 if channel % 2 else levels // 2 - 1
        candidates = np.linspace(0.02, 1, 400) * np.abs(values).max()
        best = min(squared_error(values, candidate, steps) for candidate in candidates)
        # The error is flat around its minimum: thresholds half a percent apart and values binned cost under 2 %.
        assert squared_error(values, limit, steps) <= 1.02 * best


def test_mse_at_few_levels_clips_and_at_many_hardly_does():
    data = heavy_tailed()
    few, many = (threshold(observe(MSEObserver, data, options=MSEOptions(levels=n))) for n in (16, 256))
    largest = np.abs(data).max(axis=(0, 2, 3))
    assert (few[::2] < 0.6 * largest[::2]).all()  # signed: 7 steps a side
    assert (few[1::2] < 0.9 * largest[1::2]).all()  # after a ReLU: 15 steps
    assert (few < many).all()


def divergence(counts, bins):
    """KL(P‖Q) as Migacz's slides compute it, bin by bin, for one channel and a threshold of `bins` bins."""
    reference = counts[:bins].astype(np.float64)
    reference[-1] += counts[bins:].sum()
    candidate = np.zeros(bins)
    edges = np.rint(np.linspace(0, bins, 129)).astype(int)
    for start, end in itertools.pairwise(edges):
        filled = reference[start:end] > 0
        if filled.any():
            candidate[start:end][filled] = counts[start:end].sum() / filled.sum()
    if (candidate[reference > 0] == 0).any():
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_finds_the_least_divergence_that_a_direct_transcription_finds():
    data = heavy_tailed(count=12)
    observer = observe(EntropyObserver, data, options=HistogramOptions(pixels=EVERY_PIXEL))
    found, largest = threshold(observer), np.abs(data).max(axis=(0, 2, 3))
    state = observer.state()
    candidates = range(1024, 127, -32)
    for channel, limit in enumerate(found):
        counts = state["counts"][channel, 1:]
        best = min(candidates, key=lambda bins, counts=counts: divergence(counts, bins))
        width = 2.0 ** state["exponents"][channel] / 1024
        assert limit == pytest.approx(min(best * width, largest[channel]), rel=1e-6)  # rounded to float32


def test_entropy_clips_a_lonely_outlier_and_leaves_a_uniform_channel_whole():
    rng = np.random.default_rng(3)
    data = rng.uniform(0, 1, (64, 2, 16, 16)).astype(np.float32)
    data[0, 1, 0, 0] = 4.0
    high = observe(EntropyObserver, data, options=HistogramOptions(pixels=EVERY_PIXEL)).ranges().high
    assert high[0] == data[:, 0].max()
    assert 1.0 <= high[1] < 1.2  # a threshold is tried every 32 bins of 4/1024: 0.125


# --- the histogram


def test_counts_are_those_of_the_final_width_from_the_start():
    values = np.float32([0.3, 0, 0.26, 0.25, 1.5, -7.9, 0, 300.0])
    grown = ChannelHistogram.empty(1, 256)
    for index, value in enumerate(values):
        grown.add(value.reshape(1, 1, 1), np.abs(values[: index + 1]).max(keepdims=True))
    # 300 < 2^9, so the width is 2; the columns are ⌈|x| / 2⌉
    wanted = np.bincount([1, 0, 1, 1, 1, 4, 0, 150], minlength=257)
    assert grown.widths == [2.0]
    np.testing.assert_array_equal(grown.counts[0], wanted)


def test_dead_channels_and_the_largest_float_are_counted():
    data = np.zeros((2, 2, 4, 4), np.float32)
    data[:, 1] = np.finfo(np.float32).max
    for kind in CLIPPING:
        ranges = observe(kind, data).ranges()
        np.testing.assert_array_equal(ranges.high, data.max(axis=(0, 2, 3)))
        np.testing.assert_array_equal(ranges.low[:1], [0])


def test_a_channel_that_comes_to_life_late_is_measured_at_its_own_scale():
    data = heavy_tailed(channels=2)
    silent = np.zeros_like(data[:5])
    alive = observe(PercentileObserver, np.concatenate([silent, data]), parts=45)
    assert_same(alive, observe(PercentileObserver, np.concatenate([data, silent])))
    assert (alive.state()["exponents"] > -10).all()


def test_a_count_that_would_overflow_is_refused():
    observer = observe(MSEObserver, heavy_tailed())
    observer.state()["counts"][0, 0] = 2**32 - 10
    with pytest.raises(DataError):
        observer.update(heavy_tailed(count=1))


def test_at_most_so_many_pixels_are_counted_and_all_columns_take_part():
    for image in [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7), (1, 9), (5,), ()]:
        step = pixel_step(image, 40)
        pixels = range(0, int(np.prod(image)), step)
        assert len(pixels) <= 40
        width = image[-1] if image else 1
        assert len({pixel % width for pixel in pixels}) == min(width, len(pixels))


@pytest.mark.parametrize("kind", CLIPPING)
def test_extremes_are_exact_though_not_every_pixel_is_counted(kind):
    data = heavy_tailed(size=31)
    observer = observe(kind, data, options=kind.options_type(pixels=16))
    state = observer.state()
    assert (state["counts"].sum(axis=1) <= 16 * len(data)).all()
    np.testing.assert_array_equal(state["low"], data.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(state["high"], data.max(axis=(0, 2, 3)))


def test_a_sample_of_the_pixels_gives_about_the_threshold_of_all():
    data = heavy_tailed(count=128, size=32)
    few, all_ = (
        threshold(observe(PercentileObserver, data, options=PercentileOptions(percentile=99.0, pixels=pixels)))
        for pixels in (128, EVERY_PIXEL)
    )
    # 128 · 111 of 131072 values: the 99th percentile of a Laplacian, 4.6 scales, then scatters by √(99/14208) = 0.08
    # scales, 1.8 %; a signed channel and its ReLU differ little. Four times that does not happen.
    np.testing.assert_allclose(few, all_, rtol=0.08)


# --- what every observer owes


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batches_nor_order_change_a_bit(kind):
    data = heavy_tailed()
    data[3, 1] = -0.0  # which zero a minimum returns must not depend on order either
    whole = observe(kind, data)
    shuffled = np.random.default_rng(1).permutation(len(data))
    assert_same(whole, observe(kind, data, parts=40))
    assert_same(whole, observe(kind, data, parts=11, order=shuffled))


@pytest.mark.parametrize("kind", KINDS)
def test_restored_state_goes_on_to_the_same_bits(kind):
    data = heavy_tailed()
    first = observe(kind, data[:13])
    second = kind(data.shape[1])
    second.restore({name: array.copy() for name, array in first.state().items()})
    second.update(data[13:])
    assert_same(second, observe(kind, data))


@pytest.mark.parametrize("kind", KINDS)
def test_restoring_copies_so_that_the_first_observer_is_untouched(kind):
    data = heavy_tailed()
    first, second = observe(kind, data[:13]), kind(data.shape[1])
    second.restore(first.state())
    second.update(1000 * data)
    assert_same(first, observe(kind, data[:13]))


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_stay_within_min_max_and_in_order(kind):
    data = heavy_tailed() + np.float32(5)  # not around zero
    ranges, extremes = observe(kind, data).ranges(), observe(observers.get("minmax"), data).ranges()
    assert (ranges.low <= ranges.high).all()
    assert (ranges.high <= extremes.high).all()


@pytest.mark.parametrize("kind", KINDS)
def test_flat_activations_have_channels_too(kind):
    data = heavy_tailed(count=100, size=1)[:, :, 0, 0]
    assert observe(kind, data).ranges().low.shape == (6,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_and_leave_no_trace(kind, bad):
    data = heavy_tailed()
    observer = observe(kind, data)
    broken = 2 * data
    broken[5, 2, 3, 3] = bad
    with pytest.raises(DataError):
        observer.update(broken)
    assert_same(observer, observe(kind, data))


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_update_there_are_no_ranges(kind):
    with pytest.raises(DataError):
        kind(3).ranges()


@pytest.mark.parametrize("array", [np.zeros((1, 6, 2)), np.zeros((1, 5, 2), np.float32), np.zeros(6, np.float32)])
def test_another_type_rank_or_channel_count_is_refused(array):
    with pytest.raises(FeedError):
        observers.get("minmax")(6).update(array)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (PercentileOptions, "percentile", 100.5),
        (MinMaxOptions, "headroom", 1.5),
        (MSEOptions, "levels", 2),
        (HistogramOptions, "pixels", 0),
    ],
)
def test_options_out_of_range_are_refused(kind, name, value):
    with pytest.raises(UsageError) as caught:
        kind(**{name: value})
    assert caught.value.subject == f"{name}={value}"


def test_bins_are_a_power_of_two():
    with pytest.raises(UnknownNameError) as caught:
        HistogramOptions(bins=1000)
    assert caught.value.subject == "1000"

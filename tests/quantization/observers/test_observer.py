"""What every observer owes: exact extremes, no effect of order or batches, exact resume; and how options are given."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import DataError, FeedError, UnknownNameError, UsageError
from densenet_deploy.quantization.observers.histogram import HistogramOptions
from densenet_deploy.quantization.observers.minmax import MinMaxObserver, MinMaxOptions
from densenet_deploy.quantization.observers.mse import MSEOptions
from densenet_deploy.quantization.observers.observer import (
    CalibrationConfig,
    Observer,
    observers,
    parse_observer_options,
)
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from tests.quantization.observers.channels import columns, observed

KINDS = sorted(observers.items().values(), key=lambda kind: kind.__name__)
every_observer = pytest.mark.parametrize("kind", KINDS)


def heavy_tailed(channels: int = 4, count: int = 24, size: int = 6) -> np.ndarray:
    """Laplacian activations of scales 0.01, 0.1, 1 …, (count, channels, size, size); odd channels after a ReLU."""
    data = np.random.default_rng(0).laplace(size=(count, channels, size, size)).astype(np.float32)
    data[:, 1::2] = np.maximum(data[:, 1::2], 0)
    return data * np.float32(10.0 ** np.arange(-2, channels - 2)).reshape(-1, 1, 1)


def assert_same(observer: Observer, other: Observer) -> None:
    """Bit for bit: 0 and -0 are different."""
    ours, theirs = observer.ranges(), other.ranges()
    np.testing.assert_array_equal(ours.low.view(np.int32), theirs.low.view(np.int32))
    np.testing.assert_array_equal(ours.high.view(np.int32), theirs.high.view(np.int32))


def test_the_four_observers_are_found():
    assert observers.names() == ("entropy", "minmax", "mse", "percentile")
    with pytest.raises(UnknownNameError) as caught:
        observers.get("minmux")
    assert (caught.value.subject, caught.value.why) == ("minmux", "unknown observer")


# --- extremes, order, resume


EXACT = MinMaxOptions(headroom=0.0)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 4), (2, 3, 1, 4), (2, 3, 2, 1, 2)])
def test_extremes_are_those_of_each_channel_over_samples_and_pixels(shape):
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ranges = observed(MinMaxObserver, data, options=EXACT).ranges()
    channels = data.swapaxes(0, 1).reshape(3, -1)
    assert ranges.low.tolist() == channels.min(axis=1).tolist()
    assert ranges.high.tolist() == channels.max(axis=1).tolist()


def test_extremes_of_several_updates_are_joined():
    ranges = observed(MinMaxObserver, columns([1, 2], [-3, 4]), columns([1.5, 3], [-1, 1]), options=EXACT).ranges()
    assert (ranges.low.tolist(), ranges.high.tolist()) == ([1, -3], [3, 4])


@pytest.mark.parametrize("zeros", [[-0.0, -0.0], [-0.0, 0.0], [0.0, -0.0]])
def test_zero_has_no_sign(zeros):
    ranges = observed(MinMaxObserver, columns(zeros), options=EXACT).ranges()
    assert not np.signbit([ranges.low, ranges.high]).any()


def test_ranges_are_the_callers_own():
    observer = observed(MinMaxObserver, columns([-1, 2]), options=EXACT)
    ranges = observer.ranges()
    ranges.low[:], ranges.high[:] = -9, 9
    observer.update(columns([0, 0]))
    assert (observer.ranges().low, observer.ranges().high) == ([-1], [2])


@every_observer
def test_neither_batches_nor_order_change_a_bit(kind):
    data = heavy_tailed()
    data[3, 1] = -0.0
    whole = observed(kind, data)
    shuffled = np.random.default_rng(1).permutation(len(data))
    assert_same(whole, observed(kind, *np.split(data, len(data))))
    assert_same(whole, observed(kind, *np.array_split(data[shuffled], 7)))


@every_observer
def test_restored_state_goes_on_to_the_same_bits(kind):
    data = heavy_tailed()
    first, second = observed(kind, data[:13]), kind(data.shape[1])
    second.restore(first.state())
    second.update(data[13:])
    assert_same(second, observed(kind, data))
    assert_same(first, observed(kind, data[:13]))  # what was restored was a copy
    given = {name: array.copy() for name, array in first.state().items()}
    second.restore(given)
    for array in given.values():
        array[:] = 0
    assert_same(second, first)


def test_state_holds_the_extremes():
    state = observed(MinMaxObserver, columns([-1, 2], [3, 4])).state()
    assert {name: array.tolist() for name, array in state.items()} == {"low": [-1, 3], "high": [2, 4]}


@every_observer
def test_ranges_stay_within_the_extremes_and_in_order(kind):
    data = heavy_tailed() + np.float32(5)  # not around zero
    ranges, extremes = observed(kind, data).ranges(), observed(MinMaxObserver, data).ranges()
    assert (ranges.low <= ranges.high).all()
    assert (ranges.low <= extremes.high).all()
    assert (ranges.high <= extremes.high).all()


# --- what is refused


@every_observer
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_and_leave_no_trace(kind, bad):
    data = heavy_tailed()
    observer = observed(kind, data)
    broken = 2 * data
    broken[5, 2, 3, 3] = bad
    with pytest.raises(DataError) as caught:
        observer.update(broken)
    assert caught.value.subject == "activations"
    assert_same(observer, observed(kind, data))


@every_observer
def test_before_the_first_update_there_are_no_ranges(kind):
    with pytest.raises(DataError) as caught:
        kind(3).ranges()
    assert caught.value.subject == "observer"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 6, 2)),
        np.zeros((1, 6, 2), np.float16),
        np.zeros((1, 5, 6), np.float32),
        np.zeros((6, 7), np.float32),
        np.zeros(6, np.float32),
        np.zeros((0, 6, 2), np.float32),
        np.zeros((1, 6, 0), np.float32),
    ],
    ids=["float64", "float16", "5 channels", "7 channels", "one axis", "no samples", "no pixels"],
)
def test_another_type_rank_channel_count_or_nothing_is_refused(array):
    with pytest.raises(FeedError) as caught:
        MinMaxObserver(6).update(array)
    assert caught.value.subject == "activations"


# --- configuration


def test_a_configuration_is_min_max_of_every_tensor_unless_it_says_otherwise():
    assert CalibrationConfig() == CalibrationConfig("minmax", None, None)
    assert CalibrationConfig().facts() == {"observer": "minmax", "options": {"headroom": 0.1}, "tensors": None}


def test_facts_hold_all_options_and_tensors():
    config = CalibrationConfig("percentile", PercentileOptions(percentile=99.0, bins=512), ("a", "b"))
    options = {"bins": 512, "pixels": 128, "percentile": 99.0}
    assert config.facts() == {"observer": "percentile", "options": options, "tensors": ["a", "b"]}


def test_an_unknown_observer_or_another_observers_options_are_refused():
    with pytest.raises(UnknownNameError):
        CalibrationConfig("minmux")
    with pytest.raises(UsageError) as caught:
        CalibrationConfig("percentile", HistogramOptions())
    assert caught.value.subject == "HistogramOptions"


@pytest.mark.parametrize(
    ("observer", "text", "subject"),
    [
        ("percentile", "percentil=99.9", "percentile: percentil"),
        ("percentile", 'percentile="99"', "percentile: percentile"),
        ("percentile", "percentile=101.0", "percentile=101.0"),
        ("percentile", "bins=1.5", "percentile: bins"),
        ("percentile", "bins=1000", "1000"),
        ("minmax", "percentile=99.0", "minmax: percentile"),
        ("minmax", "headroom=true", "minmax: headroom"),
        ("maximum", "headroom=1", "maximum"),
    ],
)
def test_options_that_an_observer_does_not_take_are_refused(observer, text, subject):
    with pytest.raises(UsageError) as caught:
        parse_observer_options(observer, [text])
    assert caught.value.subject == subject


def test_options_from_texts():
    assert parse_observer_options("minmax", []) == MinMaxOptions()
    assert parse_observer_options("mse", ["levels=16", "bins=256"]) == MSEOptions(levels=16, bins=256)
    assert parse_observer_options("entropy", []) == HistogramOptions()
    found = parse_observer_options("percentile", [" percentile = 99.5", "bins=512", "bins=256"])
    assert found == PercentileOptions(percentile=99.5, bins=256)


@pytest.mark.parametrize("text", ["percentile", "percentile=", "percentile=much", "percentile=NaN", "percentile==99"])
def test_a_text_without_a_number_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_observer_options("percentile", [text])
    assert caught.value.subject == text

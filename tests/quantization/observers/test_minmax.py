"""The min-max observer: the range of each channel, and headroom on the sides that were reached."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.quantization.observers.minmax import MinMaxObserver, MinMaxOptions
from densenet_deploy.quantization.observers.observer import ChannelRanges
from tests.quantization.observers.channels import columns, observed


@pytest.mark.parametrize(
    ("headroom", "low", "high"),
    [
        (0.0, [-2, 0, -4, 0.5, -4, 0], [6, 8, 0, 2.5, -2, 0]),
        (0.25, [-4, 0, -5, 0.5, -4.5, 0], [8, 10, 0, 3, -2, 0]),
        (1.0, [-10, 0, -8, 0.5, -6, 0], [14, 16, 0, 4.5, -2, 0]),
    ],
)
def test_headroom_is_a_part_of_the_width_on_each_side_beyond_zero(headroom, low, high):
    data = columns([-2, 6], [0, 8], [-4, 0], [0.5, 2.5], [-2, -4], [0, 0])
    ranges = observed(MinMaxObserver, data, options=MinMaxOptions(headroom=headroom)).ranges()
    assert (ranges.low.tolist(), ranges.high.tolist()) == (low, high)
    assert (ranges.low.dtype, ranges.high.dtype) == ("float32", "float32")


def test_headroom_is_a_tenth_where_none_is_given():
    ranges = observed(MinMaxObserver, columns([-30, 70], [0, 0.5])).ranges()
    assert ranges.low.tolist() == [-40, 0]
    assert ranges.high.tolist() == pytest.approx([80, 0.55], rel=1e-6)  # a tenth in float32


@pytest.mark.parametrize("headroom", [-0.001, 1.001])
def test_headroom_is_between_0_and_1(headroom):
    with pytest.raises(UsageError) as caught:
        MinMaxOptions(headroom=headroom)
    assert caught.value.subject == f"headroom={headroom}"


@pytest.mark.parametrize("headroom", [0.0, 0.1, 1.0])
def test_extremes_are_found_again_in_the_ranges_that_were_made_of_them(headroom):
    options = MinMaxOptions(headroom=headroom)
    low, high = np.float32([-2, 0, -4, 0.5, -4, 0]), np.float32([6, 8, 0, 2.5, -2, 0])
    found = options.narrowed(options.widened(ChannelRanges(low, high)))
    # a few roundings of float32
    np.testing.assert_allclose(found.low, low, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.high, high, rtol=1e-6, atol=1e-6)
    assert (found.low.dtype, found.high.dtype) == ("float32", "float32")

"""Widths by a ratio, and by error per multiply-accumulate."""

from __future__ import annotations

import math

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.pruning.widths import Curve, least_width, schedule, step_of, uniform_widths


@pytest.mark.parametrize(("width", "ratio", "left"), [(128, 0.25, 96), (128, 0.5, 64), (48, 0.3, 34), (10, 0.25, 8)])
def test_a_ratio_is_rounded_to_whole_channels(width: int, ratio: float, left: int) -> None:
    assert uniform_widths({"a": width}, ratio) == {"a": left}


def test_a_ratio_leaves_every_layer_a_channel() -> None:
    assert uniform_widths({"a": 4, "b": 8}, 0.87) == {"a": 1, "b": 1}
    with pytest.raises(UsageError) as caught:
        uniform_widths({"a": 4, "b": 8}, 0.88)
    assert (caught.value.subject, "a without channels" in caught.value.why) == ("ratio=0.88", True)


def test_a_ratio_that_removes_nothing_is_refused() -> None:
    assert uniform_widths({"a": 4, "b": 8}, 0.07) == {"a": 4, "b": 7}
    with pytest.raises(UsageError) as caught:
        uniform_widths({"a": 4, "b": 8}, 0.06)
    assert caught.value.subject == "ratio=0.06"


@pytest.mark.parametrize(
    ("width", "step", "least"), [(128, 8, 16), (192, 8, 24), (64, 8, 8), (63, 7, 14), (48, 6, 6), (8, 1, 1), (1, 1, 1)]
)
def test_steps_are_of_eight_channels_or_an_eighth(width: int, step: int, least: int) -> None:
    assert (step_of(width), least_width(width)) == (step, least)


def curve(name: str, noise: list[float], macs: int = 10) -> Curve:
    return Curve(name, len(noise), macs, tuple(noise))


def test_the_cheapest_noise_per_operation_goes_first() -> None:
    a = curve("a", [0, 1, 3, 6])
    b = curve("b", [0, 1, 2, 9], macs=20)
    plan = schedule([a, b])
    assert plan.steps == (("b", 2), ("a", 3), ("a", 2), ("a", 1), ("b", 1))
    assert plan.at(0) == {"a": 4, "b": 4}
    assert plan.at(len(plan.steps)) == {"a": 1, "b": 1}
    assert list(plan.noise) == sorted(plan.noise)


def test_a_costly_channel_does_not_hide_cheap_ones_behind_it() -> None:
    """From 4 to 3 costs 4, from there to 2 nothing: one step of 2 channels for 2 each, before another layer's 3."""
    plan = schedule([curve("a", [0, 4, 4, 20]), curve("b", [0, 3, 6, 9])])
    assert plan.steps[0] == ("a", 2)
    assert plan.noise[:2] == (0, 4)


def test_a_plan_predicts_the_sqnr() -> None:
    plan = schedule([curve("a", [0, 0.01, 0.1, 1.0])])
    assert [plan.predicted_db(count) for count in range(4)] == [math.inf, 20.0, pytest.approx(10.0), pytest.approx(0.0)]


def test_a_width_between_two_steps_comes_down_to_a_multiple() -> None:
    noise = [float(removed**2) for removed in range(61)]
    assert step_of(61) == 7
    assert [width for _, width in schedule([curve("a", noise)]).steps] == [56, 49, 42, 35, 28, 21, 14]

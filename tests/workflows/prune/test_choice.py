"""The smallest network within a limit: found in few trials, and never outside of it."""

from __future__ import annotations

import math

import pytest

from densenet_deploy.pruning.widths import Schedule
from densenet_deploy.workflows.prune.choice import MOST_TRIALS, most_steps


def plan(count: int) -> Schedule:
    """Noise that grows by a factor in every step, 60 dB to 0 dB."""
    noise = [10 ** (-6 * (1 - step / count)) for step in range(count + 1)]
    return Schedule({"a": count + 1}, tuple(("a", count - step) for step in range(count)), tuple(noise))


def search(count: int, keeps: int, *, predicts: bool = False, offset: float = 0.0) -> tuple[int, list[int]]:
    """Search where the first `keeps` steps keep the limit; the measure is the prediction moved by `offset`."""
    tried: list[int] = []
    steps = plan(count)
    least = steps.predicted_db(keeps) + offset - 1e-9 if predicts else -keeps

    def measure(number: int) -> float:
        tried.append(number)
        return steps.predicted_db(number) + offset if predicts else -number

    return most_steps(steps, measure, least, predicts=predicts), tried


@pytest.mark.parametrize("keeps", range(20))
def test_few_steps_are_searched_to_the_last(keeps: int) -> None:
    found, tried = search(19, keeps)
    assert found == keeps
    assert len(tried) <= MOST_TRIALS
    assert keeps == 0 or keeps in tried, "what is returned was measured"


@pytest.mark.parametrize("keeps", [1, 7, 250, 600, 999, 1000])
def test_of_many_steps_a_fiftieth_stays_undecided(keeps: int) -> None:
    found, tried = search(1000, keeps)
    assert found <= keeps
    assert found in tried
    assert keeps - found <= 1000 / 50 or keeps < 20 or len(tried) == MOST_TRIALS


def test_before_nothing_is_returned_the_first_step_was_tried() -> None:
    found, tried = search(1000, 0)
    assert found == 0
    assert min(tried) == 1


@pytest.mark.parametrize("offset", [0.0, -8.0, 3.0])
def test_a_prediction_that_is_off_by_some_decibels_is_found_in_three_trials(offset: float) -> None:
    found, tried = search(1000, 640, predicts=True, offset=offset)
    assert 620 <= found <= 640
    assert len(tried) <= 4


def test_an_infinite_prediction_does_not_move_the_next() -> None:
    steps = Schedule({"a": 3}, (("a", 2), ("a", 1)), (0.0, 0.0, 1e-3))
    assert most_steps(steps, lambda count: math.inf if count < 2 else 30.0, 40.0, predicts=True) == 1

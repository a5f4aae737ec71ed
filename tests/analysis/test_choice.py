"""The rule that says which model to ship, and the models that no other beats."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from densenet_deploy.analysis.choice import (
    METRICS,
    Accuracy,
    ModelMerits,
    ParetoPoint,
    choose,
    is_tied,
    merit,
    pareto_front,
    score_of,
    undominated,
)

STEP = 2**24


def merits(
    speed: float = 100.0, score: float = 0.9, file_bytes: int = 10, memory: float = 8 * STEP, spread: float = 0.0
) -> ModelMerits:
    return ModelMerits(speed, score, file_bytes, memory, (speed - spread, speed + spread) if spread else None)


def test_the_fastest_is_chosen_where_others_are_slower_for_certain() -> None:
    slower = merits(97.9, score=1.0, file_bytes=1, spread=1.0)
    assert choose([slower, merits(spread=1.0), merits(50.0, score=1.0)]) == 1


@pytest.mark.parametrize(("spread", "chosen"), [(0.99, 0), (1.0, 1), (1.5, 1)])
def test_intervals_that_touch_make_models_equally_fast(spread: float, chosen: int) -> None:
    assert choose([merits(spread=1.0), merits(98.0, score=1.0, spread=spread)]) == chosen


def test_without_intervals_figures_are_exact() -> None:
    assert choose([merits(), merits(99.9999, score=1.0)]) == 0
    assert choose([merits(), merits(score=1.0)]) == 1


@pytest.mark.parametrize(
    ("better", "reason"),
    [
        ({"score": 0.91, "file_bytes": 99, "memory": 9 * STEP}, "better answers"),
        ({"file_bytes": 9, "memory": 9 * STEP}, "a smaller file"),
        ({"memory": 7 * STEP}, "less memory"),
    ],
)
def test_among_equally_fast_models_answers_then_size_then_memory_decide(better: dict[str, float], reason: str) -> None:
    fastest, other = merits(spread=1.0), merits(99.0, spread=1.0, **better)
    assert (choose([fastest, other]), choose([other, fastest])) == (1, 0)
    assert (merit(other, fastest), merit(fastest, other)) == (reason, "")


@pytest.mark.parametrize(
    ("other", "index"),
    [({}, 0), ({"score": 0.9004}, 0), ({"memory": 7.6 * STEP}, 0), ({"score": 0.9006}, 1), ({"memory": 7.4 * STEP}, 1)],
)
def test_differences_below_half_a_step_do_not_matter(other: dict[str, float], index: int) -> None:
    assert choose([merits(spread=1.0), merits(99.0, spread=1.0, **other)]) == index


def test_what_is_alike_but_for_the_median_is_chosen_for_it() -> None:
    assert merit(merits(), merits(99.0)) == "the shorter median"
    assert merit(merits(), merits()) == ""


@pytest.mark.parametrize(
    ("metric", "value", "shown", "score"),
    [("top1", 0.91234, "91.23%", 0.91234), ("auroc", 0.9, "0.9000", 0.9), ("mae", 3.14159, "3.142", -3.14159)],
)
def test_an_accuracy_is_shown_as_the_field_writes_it(metric: str, value: float, shown: str, score: float) -> None:
    found = Accuracy(metric, value)
    assert (found.shown, found.score, str(found)) == (shown, score, f"{found.name} {shown}")


def test_the_figure_of_the_task_is_found() -> None:
    assert Accuracy.of(SimpleNamespace(top1=None, auroc=0.5)) == Accuracy("auroc", 0.5)
    assert Accuracy.of(SimpleNamespace(mae=0.0)) == Accuracy("mae", 0.0)
    assert Accuracy.of(SimpleNamespace()) is None


def test_the_score_is_the_accuracy_or_the_sqnr_up_to_where_all_are_alike() -> None:
    assert score_of(Accuracy("mae", 2.0), 40.0) == -2.0
    assert (score_of(None, 59.9), score_of(None, 60.1), score_of(None, math.inf)) == (59.9, 60.0, 60.0)
    assert score_of(None, None) == -math.inf


@pytest.mark.parametrize(
    ("merit_of", "interval", "tied"),
    [(0.8, (1.1, 1.3), True), (0.8, (1.11, 1.3), False), (0.79, (1.0, 1.3), False), (0.8, None, False)],
)
def test_only_noise_keeps_a_point_from_the_front(merit_of: float, interval, tied: bool) -> None:
    front = [ParetoPoint("first", 1.0, 0.8, (0.9, 1.1))]
    assert is_tied(ParetoPoint("other", 1.2, merit_of, interval), front) is tied


def test_every_point_ahead_has_to_tie() -> None:
    near, far = ParetoPoint("near", 1.1, 0.8, (1.0, 1.2)), ParetoPoint("far", 0.5, 0.8, (0.4, 0.6))
    better_but_slower = ParetoPoint("better", 3.0, 0.9, (1.0, 4.0))
    other = ParetoPoint("other", 1.15, 0.8, (1.05, 1.25))
    assert is_tied(other, [near, better_but_slower])
    assert not is_tied(other, [near, far])


def test_of_errors_less_is_ahead() -> None:
    first = ParetoPoint("first", 1.0, 2.0, (0.9, 1.1))
    assert is_tied(ParetoPoint("same", 1.05, 2.0, (1.0, 1.2)), [first], METRICS["mae"])
    assert not is_tied(ParetoPoint("worse", 1.05, 3.0, (1.0, 1.2)), [first], METRICS["mae"])


def test_figures_have_the_names_of_the_field() -> None:
    assert [Accuracy(key, 0.5).name for key in METRICS] == ["top-1", "AUROC", "MAE"]


def points(*pairs: tuple[float, float]) -> list[ParetoPoint]:
    return [ParetoPoint(f"{latency} ms", latency, top1) for latency, top1 in pairs]


def test_the_front_leaves_out_what_another_beats() -> None:
    fast, middle, good, best, worse = points((1, 0.5), (2, 0.6), (3, 0.7), (5, 0.8), (4, 0.65))
    as_good_but_slower, as_fast_but_worse = points((6, 0.8), (3, 0.6))
    shuffled = [best, as_good_but_slower, worse, fast, as_fast_but_worse, good, middle]
    assert pareto_front(shuffled) == (fast, middle, good, best)


def test_of_equally_fast_models_the_more_accurate_is_on_the_front() -> None:
    good, bad = points((1, 0.8), (1, 0.7))
    assert pareto_front([bad, good]) == (good,)
    assert pareto_front([]) == ()


def test_a_point_was_measured_and_is_not_the_choice_unless_it_says_so() -> None:
    (point,) = points((1, 0.5))
    assert (point.interval_ms, point.published, point.chosen) == (None, False, False)


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ([], ()),
        ([(1.0, 2.0)], (0,)),
        ([(1.0, 2.0), (2.0, 1.0)], (0, 1)),
        ([(1.0, 2.0), (1.0, 3.0)], (0,)),
        ([(2.0, 2.0), (2.0, 1.0)], (1,)),
        ([(2.0, 2.0), (1.0, 1.0)], (1,)),
        ([(1.0, 3.0), (1.0, 3.0), (1.0, 3.0)], (0,)),
        ([(5.0, 5.0), (1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (1.0, 3.0)], (1, 2)),
        ([(1.0, 2.0, 3.0), (3.0, 1.0, 2.0), (2.0, 3.0, 3.0)], (0, 1)),
    ],
)
def test_what_another_matches_in_all_and_undercuts_in_one_is_left_out(costs, kept) -> None:
    assert undominated(costs) == kept
    assert undominated([list(cost) for cost in costs]) == kept

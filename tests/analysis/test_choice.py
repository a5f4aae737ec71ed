"""The rule that says which model to ship, and the models that no other beats."""

from __future__ import annotations

import pytest

from densenet_deploy.analysis.choice import ModelMerits, ParetoPoint, choose, pareto_front, undominated

STEP = 2**24


def merits(speed: float = 100.0, score: float = 0.9, file_bytes: int = 10, memory: float = 8 * STEP) -> ModelMerits:
    return ModelMerits(speed, score, file_bytes, memory)


def test_the_fastest_is_chosen_where_others_are_clearly_slower() -> None:
    choice = choose([merits(97.9, score=1.0, file_bytes=1), merits(), merits(50.0, score=1.0)])
    assert (choice.index, choice.reason) == (1, "the fastest of 3")


def test_two_percent_slower_is_equally_fast() -> None:
    assert choose([merits(), merits(98.0, score=1.0)]).index == 1


def test_a_single_model_is_the_fastest() -> None:
    assert choose([merits()]).reason == "the fastest of 1"


@pytest.mark.parametrize(
    ("better", "reason"),
    [
        (merits(99.0, score=0.91, file_bytes=99, memory=9 * STEP), "its answers are better"),
        (merits(99.0, file_bytes=9, memory=9 * STEP), "its file is smaller"),
        (merits(99.0, memory=7 * STEP), "it needs less memory"),
    ],
)
def test_among_equally_fast_models_answers_then_size_then_memory_decide(better: ModelMerits, reason: str) -> None:
    for models, index in (([merits(), better], 1), ([better, merits()], 0)):
        choice = choose(models)
        assert (choice.index, choice.reason) == (index, f"within 2 % of the fastest of 2, and {reason}")


@pytest.mark.parametrize(
    "other",
    [merits(99.0), merits(99.0, score=0.9004), merits(99.0, memory=7.6 * STEP)],
    ids=["slower", "score", "memory"],
)
def test_differences_too_small_to_matter_leave_the_fastest(other: ModelMerits) -> None:
    for models, index in (([other, merits()], 1), ([merits(), other], 0)):
        assert (choose(models).index, choose(models).reason) == (index, "the fastest of 2")


@pytest.mark.parametrize(
    "other", [merits(99.0, score=0.9006), merits(99.0, memory=7.4 * STEP)], ids=["score", "memory"]
)
def test_differences_beyond_half_a_step_matter(other: ModelMerits) -> None:
    assert choose([merits(), other]).index == 1


def test_of_two_fastest_the_better_is_the_fastest() -> None:
    choice = choose([merits(), merits(file_bytes=9)])
    assert (choice.index, choice.reason) == (1, "the fastest of 2")


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

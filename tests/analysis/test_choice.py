"""The rule that says which model to ship."""

from __future__ import annotations

import pytest

from densenet_deploy.analysis.choice import ModelMerits, choose


def merits(speed: float = 100.0, score: float = 0.9, file_bytes: int = 10, memory: float = 2**27) -> ModelMerits:
    return ModelMerits(speed, score, file_bytes, memory)


def test_the_fastest_is_chosen_where_others_are_clearly_slower() -> None:
    choice = choose([merits(97.0, score=1.0, file_bytes=1), merits()])
    assert (choice.index, choice.reason) == (1, "the fastest of 2")


@pytest.mark.parametrize(
    ("better", "reason"),
    [
        (merits(99.0, score=0.91, file_bytes=99), "its answers are better"),
        (merits(99.0, file_bytes=9, memory=2**30), "its file is smaller"),
        (merits(99.0, memory=2**26), "it needs less memory"),
    ],
)
def test_among_equally_fast_models_answers_then_size_then_memory_decide(better: ModelMerits, reason: str) -> None:
    choice = choose([merits(), better])
    assert choice.index == 1
    assert choice.reason.endswith(reason)


def test_differences_too_small_to_matter_leave_the_fastest() -> None:
    assert choose([merits(99.0, score=0.9002, memory=2**27 - 2**20), merits()]).index == 1

"""Candidates timed in rounds: alternating order, ratios in the right direction, and no process left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from densenet_deploy.bench.candidate import Candidate, CandidateWorker
from densenet_deploy.bench.rounds import Interval, RoundResults, compare_speed, measure_rounds
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.errors import InputError, UsageError


def _timings(*milliseconds: float) -> tuple[RoundTiming, ...]:
    return tuple(RoundTiming((ms / 1000,) * 3) for ms in milliseconds)


def _children() -> str:
    """The ids of the workers of this process, one per line."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", "densenet_deploy.bench.candidate"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class ScriptedWorker:
    """A worker whose median calls are known in advance, and that records the order of calls in `log`."""

    opening = None

    def __init__(self, *milliseconds: float, log: list[object] | None = None) -> None:
        self.left = list(_timings(*milliseconds))
        self.log = [] if log is None else log

    def measure(self, _seconds: float) -> RoundTiming:
        self.log.append(self)
        return self.left.pop(0)


def test_a_speedup_is_the_median_ratio_of_rounds():
    result = RoundResults({"slow": _timings(4, 6, 8), "fast": _timings(2, 2, 2)}, {})
    assert result.latency_ms("slow") == pytest.approx(6)
    assert result.speedup("fast", over="slow").median == pytest.approx(3)
    assert result.speedup("slow", over="fast").median == pytest.approx(1 / 3)


def test_a_drift_of_the_machine_cancels_in_the_ratio():
    result = RoundResults({"slow": _timings(2, 4, 8, 16), "fast": _timings(1, 2, 4, 8)}, {})
    assert result.speedup("fast", over="slow") == Interval(2, 2, 2)


def test_an_interval_contains_its_median():
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.low < found.median == 3 < found.high
    assert found == Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert Interval.of([5.0]) == Interval(5, 5, 5)


def test_the_ratio_of_two_runs_has_the_noise_of_both():
    noisy, exact = [4.0, 3.8, 4.2], [2.0, 2.0, 2.0]
    ratio = Interval.of_ratio(noisy, exact)
    assert ratio.low < ratio.median == 2 < ratio.high
    assert Interval.of_ratio(exact, exact) == Interval(1, 1, 1)


def test_each_candidate_is_timed_once_per_round_and_no_process_is_left(tiny_onnx):
    candidates = {"one": Candidate(tiny_onnx, "onnxruntime"), "two": Candidate(tiny_onnx, "openvino")}
    result = compare_speed(candidates, rounds=2, seconds_per_round=0.01)
    assert {name: len(timings) for name, timings in result.timings.items()} == {"one": 2, "two": 2}
    assert result.placements["one"].startswith("onnxruntime")
    assert result.placements["two"].startswith("openvino")
    assert _children() == ""


def test_a_candidate_that_cannot_start_ends_the_others(tiny_onnx, tmp_path):
    with CandidateWorker(Candidate(tiny_onnx, "onnxruntime")):
        assert _children()  # otherwise the last line could not fail
    missing = tmp_path / "none.onnx"
    with pytest.raises(InputError) as caught:
        compare_speed(
            {"one": Candidate(tiny_onnx, "onnxruntime"), "none": Candidate(missing)},
            seconds_per_round=0.01,
            left=lambda found: found.speedup("none", over="one").median and found.timings,  # which is never asked
        )
    assert caught.value.subject == str(missing)
    assert _children() == ""


def test_the_order_is_reversed_from_round_to_round():
    order: list[object] = []
    one, two = ScriptedWorker(*[1] * 4, log=order), ScriptedWorker(*[1] * 4, log=order)
    result = measure_rounds({"one": one, "two": two}, rounds=3, seconds_per_round=0)
    assert order == [one, two, *(one, two), *(two, one), *(one, two)]  # the first two are warm-up
    assert len(result.timings["one"]) == 3


def test_warm_up_ends_when_the_times_are_steady():
    workers = {"one": ScriptedWorker(9, 5, 3, 2, 2, 2, *[7, 7]), "two": ScriptedWorker(1, 1, 1, 1, 1, 1, *[1, 1])}
    result = measure_rounds(workers, rounds=2, seconds_per_round=0, max_warm_up_rounds=10)
    assert (result.warm_up_rounds, result.unsteady) == (6, ())
    assert result.latency_ms("one") == pytest.approx(7)


def test_warm_up_ends_although_one_never_settles_and_that_is_reported():
    workers = {"one": ScriptedWorker(*[1, 2] * 4), "two": ScriptedWorker(*[1] * 8)}
    result = measure_rounds(workers, rounds=1, seconds_per_round=0, max_warm_up_rounds=5)
    assert (result.warm_up_rounds, result.unsteady) == (5, ("one",))


def test_five_percent_are_steady_and_six_are_not():
    for spread, unsteady in ((1.049, ()), (1.06, ("one",))):
        workers = {"one": ScriptedWorker(1, 1, spread, 1)}
        result = measure_rounds(workers, rounds=1, seconds_per_round=0, max_warm_up_rounds=3)
        assert result.unsteady == unsteady


def test_no_rounds_at_all_are_refused():
    with pytest.raises(UsageError) as caught:
        compare_speed({}, rounds=0)
    assert caught.value.subject == "rounds=0"


def test_rounds_end_when_none_is_left():
    asked: list[int] = []

    def left(found: RoundResults) -> tuple[str, ...]:
        asked.append(len(found.timings["one"]))
        return () if found.speedup("one", over="two").median == 3 else ("one", "two")

    workers = {"one": ScriptedWorker(*[1] * 9), "two": ScriptedWorker(1, 2, 3, 4, 5, 6, 7, 8, 9)}
    result = measure_rounds(workers, rounds=8, seconds_per_round=0, left=left)
    assert asked == [1, 2, 3], "after each round, and 3 is the median of 2, 3 and 4"
    assert len(result.timings["two"]) == 3
    assert len(measure_rounds({"one": ScriptedWorker(*[1] * 4)}, rounds=3, seconds_per_round=0).timings["one"]) == 3


def test_who_is_left_out_stays_out_and_is_compared_in_the_rounds_that_it_ran():
    answers = iter((("one", "two"), ("one",), ("one", "two"), ()))
    workers = {"one": ScriptedWorker(*[1] * 5), "two": ScriptedWorker(9, 2, 4)}
    result = measure_rounds(workers, rounds=8, seconds_per_round=0, left=lambda _: next(answers))
    assert {name: len(timings) for name, timings in result.timings.items()} == {"one": 4, "two": 2}
    assert result.speedup("one", over="two").median == 3
    assert result.speedup("two", over="one").median == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_process_starts_before_the_next_candidate_is_made(tiny_onnx):
    seen: list[str] = []

    def made() -> Iterator[tuple[str, Candidate]]:
        seen.append(_children())
        yield "one", Candidate(tiny_onnx, "onnxruntime")
        seen.append(_children())

    assert len(compare_speed(made(), rounds=1, seconds_per_round=0.01).timings["one"]) == 1
    assert [bool(children) for children in seen] == [False, True]
    assert _children() == ""

"""Models against each other: turns in alternating order, ratios that point the right way, nothing left behind."""

from __future__ import annotations

import os
import subprocess

import pytest

import densenet_deploy.bench.race as race_module
from densenet_deploy.bench.contender import Contender, Process
from densenet_deploy.bench.race import Interval, RaceResult, race, race_loaded
from densenet_deploy.bench.scenarios import Turn
from densenet_deploy.errors import InputError, UsageError


def _turns(*milliseconds: float) -> tuple[Turn, ...]:
    return tuple(Turn((ms / 1000,) * 3, 1) for ms in milliseconds)


def _children() -> str:
    """The ids of this process's contenders, one a line."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", "densenet_deploy.bench.contender"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_speedup_is_the_median_ratio_of_rounds():
    result = RaceResult({"slow": _turns(4, 6, 8), "fast": _turns(2, 2, 2)}, {})
    assert result.latency_ms("slow") == pytest.approx(6)
    assert result.speedup("fast", over="slow").median == pytest.approx(3)
    assert result.speedup("slow", over="fast").median == pytest.approx(1 / 3)


def test_a_drift_of_the_machine_cancels_in_the_ratio():
    result = RaceResult({"slow": _turns(2, 4, 8, 16), "fast": _turns(1, 2, 4, 8)}, {})
    assert result.speedup("fast", over="slow") == Interval(2, 2, 2)


def test_an_interval_brackets_its_median():
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.low < found.median == 3 < found.high
    assert found == Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert Interval.of([5.0]) == Interval(5, 5, 5)


def test_a_race_ends_with_a_turn_a_round_and_leaves_no_process(tiny_onnx):
    contenders = {"one": Contender(tiny_onnx, "onnxruntime"), "two": Contender(tiny_onnx, "openvino")}
    result = race(contenders, rounds=2, turn_seconds=0.01)
    assert {name: len(turns) for name, turns in result.turns.items()} == {"one": 2, "two": 2}
    assert result.placements["one"].startswith("onnxruntime")
    assert result.placements["two"].startswith("openvino")
    assert _children() == ""


def test_a_contender_that_cannot_start_ends_the_others(tiny_onnx, tmp_path):
    with Process(Contender(tiny_onnx, "onnxruntime")):
        assert _children()  # else the line at the end could not fail
    with pytest.raises(InputError, match="no such file"):
        race({"one": Contender(tiny_onnx, "onnxruntime"), "none": Contender(tmp_path / "none.onnx")})
    assert _children() == ""


def test_the_order_is_reversed_from_round_to_round(tiny_onnx, monkeypatch):
    order = []

    class Watched(Process):
        def turn(self, seconds):
            order.append(self._contender.batch)
            return super().turn(seconds)

    monkeypatch.setattr(race_module, "Process", Watched)
    contenders = {str(batch): Contender(tiny_onnx, "onnxruntime", batch) for batch in (1, 2)}
    result = race(contenders, rounds=3, turn_seconds=0)
    assert order == [1, 2, *(1, 2), *(2, 1), *(1, 2)]  # the first two do not count
    assert len(result.turns["1"]) == 3


class Scripted:
    """A racer whose turns are known beforehand."""

    opening = None

    def __init__(self, *milliseconds):
        self.left = list(_turns(*milliseconds))

    def turn(self, _seconds):
        return self.left.pop(0)


def test_warm_up_ends_when_the_times_are_steady():
    processes = {"one": Scripted(9, 5, 3, 2, 2, 2, *[7, 7]), "two": Scripted(1, 1, 1, 1, 1, 1, *[1, 1])}
    result = race_loaded(processes, rounds=2, turn_seconds=0, most_warm_up_rounds=10)
    assert (result.warm_up_rounds, result.unsteady) == (6, ())
    assert result.latency_ms("one") == pytest.approx(7)


def test_warm_up_ends_though_one_never_settles_and_that_is_told():
    processes = {"one": Scripted(*[1, 2] * 4), "two": Scripted(*[1] * 8)}
    result = race_loaded(processes, rounds=1, turn_seconds=0, most_warm_up_rounds=5)
    assert (result.warm_up_rounds, result.unsteady) == (5, ("one",))


def test_five_per_cent_are_steady_and_six_are_not():
    for spread, unsteady in ((1.049, ()), (1.06, ("one",))):
        result = race_loaded({"one": Scripted(1, 1, spread, 1)}, rounds=1, turn_seconds=0, most_warm_up_rounds=3)
        assert result.unsteady == unsteady


def test_rounds_that_cannot_be_meant_are_refused():
    with pytest.raises(UsageError, match="rounds"):
        race({}, rounds=0)

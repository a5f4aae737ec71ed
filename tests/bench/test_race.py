"""Models against each other: each in a process of its own, in turns, and ratios that point the right way."""

from __future__ import annotations

import subprocess

import pytest

from densenet_deploy.bench.contender import Contender, Process, Turn
from densenet_deploy.bench.race import Interval, RaceResult, race
from densenet_deploy.errors import BackendError, InputError, UnknownNameError, UsageError


def _turns(*milliseconds: float) -> tuple[Turn, ...]:
    return tuple(Turn((ms / 1000,) * 3, 1) for ms in milliseconds)


def test_a_speedup_is_the_median_ratio_of_rounds():
    result = RaceResult({"slow": _turns(4, 6, 8), "fast": _turns(2, 2, 2)}, {})
    assert result.latency_ms("slow") == pytest.approx(6)
    assert result.speedup("fast", over="slow").median == pytest.approx(3)
    assert result.speedup("slow", over="fast").median == pytest.approx(1 / 3)


def test_an_interval_brackets_its_median():
    found = Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.low <= found.median == 3 <= found.high
    assert Interval.of([5.0]) == Interval(5, 5, 5)


def test_a_turn_times_some_calls_and_knows_the_memory(digits_onnx):
    with Process(Contender(digits_onnx, "onnxruntime", batch=2)) as process:
        assert process.placement.startswith("onnxruntime")
        turn = process.turn(0.01)
    assert len(turn.seconds) >= 3
    assert min(turn.seconds) > 0
    assert turn.peak_memory_bytes > 10e6


def test_a_race_ends_and_leaves_no_process(digits_onnx):
    contenders = {"one": Contender(digits_onnx, "onnxruntime"), "two": Contender(digits_onnx, "openvino")}
    result = race(contenders, rounds=2, turn_seconds=0.01)
    assert {name: len(turns) for name, turns in result.turns.items()} == {"one": 2, "two": 2}
    assert result.placements["two"].startswith("openvino")
    left = subprocess.run(["pgrep", "-f", f"bench.contender.*{digits_onnx}"], capture_output=True, check=False)
    assert left.stdout == b""


def test_what_open_runner_raises_comes_through(tmp_path, digits_onnx):
    with pytest.raises(InputError, match="no such file"):
        Process(Contender(tmp_path / "none.onnx"))
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        Process(Contender(digits_onnx, "onnxruntim"))


def test_a_process_that_dies_is_an_error(digits_onnx):
    with Process(Contender(digits_onnx, "onnxruntime")) as process:
        process._process.kill()
        with pytest.raises(BackendError, match="ended"):
            process.turn(0.01)


def test_numbers_that_cannot_be_meant_are_refused(digits_onnx):
    with pytest.raises(UsageError, match="batch"):
        Contender(digits_onnx, batch=0)
    with pytest.raises(UsageError, match="rounds"):
        race({}, rounds=0)

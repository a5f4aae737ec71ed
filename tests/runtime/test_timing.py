"""Times of calls, and the times per operator that the profilers of the backends give."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, UsageError
from densenet_deploy.runtime.runner import Device, ModuleSource, ProfileRequest, Runner, RunnerOptions, backends
from densenet_deploy.runtime.timing import LatencySummary, OperatorTime, median_times, time_runs
from densenet_deploy.workflows.load import load
from tests.conftest import TINY


def test_a_summary_is_in_milliseconds_and_interpolates():
    summary = LatencySummary.of([i / 1000 for i in range(101)])
    assert summary == LatencySummary(*(pytest.approx(ms) for ms in (50, 50, 90, 95, 99)))
    assert LatencySummary.of([0.001, 0.002]).p90 == pytest.approx(1.9)


def test_one_time_is_every_percentile():
    assert LatencySummary.of([0.25]) == LatencySummary(250, 250, 250, 250, 250)


def test_no_times_have_no_summary():
    with pytest.raises(UsageError) as caught:
        LatencySummary.of([])
    assert caught.value.subject == "latency"


def test_warm_up_calls_are_made_but_not_timed():
    calls = []
    times = time_runs(lambda: calls.append(1), warmup=3, repeats=5)
    assert len(calls) == 8
    assert len(times) == 5


def test_a_time_is_what_the_call_took_in_seconds():
    (seconds,) = time_runs(lambda: time.sleep(0.02), warmup=0, repeats=1)
    assert 0.02 <= seconds < 2  # sleep never ends early; the upper end only tells seconds from other units


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 0), (-1, 1)])
def test_numbers_that_cannot_be_meant_are_refused(warmup, repeats):
    with pytest.raises(UsageError) as caught:
        time_runs(lambda: None, warmup=warmup, repeats=repeats)
    assert caught.value.subject in ("repeats=0", "warmup=-1")


CONVOLUTIONS = 1 + 2 * 4 + 1  # the stem, two in each of four layers, one transition


def entry(name: str, ms: float) -> OperatorTime:
    return OperatorTime(name, "Conv", "CPU", "fp32", ms)


def request(source: object, calls: int = 3) -> ProfileRequest:
    feeds = {"input": np.zeros((2, 3, 32, 32), np.float32)}
    return ProfileRequest(source, Device("cpu"), RunnerOptions(threads=1), feeds, calls)  # type: ignore[arg-type]


def test_the_median_call_counts_not_the_one_that_was_stopped() -> None:
    (found,) = median_times([[entry("a", 1.0)], [entry("a", 50.0)], [entry("a", 2.0)]])
    assert found == entry("a", 2.0)


def test_entries_of_one_call_are_added_before_the_median() -> None:
    (found,) = median_times([[entry("a", 1.0), entry("a", 2.0)], [entry("a", 4.0)], [entry("a", 9.0)]])
    assert found.ms == 4.0


def test_what_differs_in_more_than_time_stays_apart_in_order() -> None:
    other = OperatorTime("a", "Conv", "CPU", "int8", 1.0)
    assert median_times([[entry("b", 1.0), entry("a", 2.0), other]]) == (entry("b", 1.0), entry("a", 2.0), other)


@pytest.mark.parametrize(("backend", "operator"), [("onnxruntime", "Conv"), ("openvino", "Convolution")])
def test_every_convolution_of_a_file_is_timed_once(backend: str, operator: str, tiny_onnx: Path) -> None:
    found = backends.get(backend).profile(request(Artifact.open(tiny_onnx)))
    convolutions = [one for one in found if one.operator == operator and "norm1" not in one.name]
    assert len(convolutions) == CONVOLUTIONS
    assert {one.precision for one in convolutions} == {"fp32"}
    assert {one.provider for one in convolutions} <= {"CPUExecutionProvider", "CPU"}
    assert all(one.ms > 0 for one in convolutions)


def test_torch_names_the_module_that_an_operator_ran_in() -> None:
    module = load(architecture=TINY, num_classes=10).module
    found = backends.get("torch").profile(request(ModuleSource(module)))
    timed = {one.name for one in found}
    names = {name for name, inner in module.named_modules() if type(inner).__name__ in ("Conv2d", "BatchNorm2d")}
    assert names <= timed
    concatenating = {one.name for one in found if one.operator == "cat"}
    assert "features.denseblock1.denselayer2" in concatenating
    assert not any(module._forward_hooks for module in module.modules())  # the caller's module is as it was


def test_a_backend_without_a_profiler_says_so() -> None:
    class Silent(Runner):
        name = "silent"

    with pytest.raises(BackendError) as caught:
        Silent.profile(request(None))
    assert caught.value.subject == "silent"


def test_a_trace_leaves_no_file(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    backends.get("onnxruntime").profile(request(Artifact.open(tiny_onnx)))
    assert list(tmp_path.rglob("*")) == []

"""Times of calls and of operators, and their summaries."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.runtime.timing import BackendClock, LatencySummary, OperatorTime, median_times, time_runs
from tests.function_runner import FunctionRunner


def test_a_summary_is_in_milliseconds_and_interpolates() -> None:
    # 0, 1, ... 10 seconds squared: percentile p lies at 10·p/100, between its neighbours.
    summary = LatencySummary.of([second**2 for second in (7, 3, 10, 0, 5, 1, 9, 2, 8, 4, 6)])
    wanted = LatencySummary(mean=35_000, p50=25_000, p90=81_000, p95=90_500, p99=98_100)
    assert vars(summary) == pytest.approx(vars(wanted), rel=1e-12)  # roundings of float64


def test_one_time_is_every_percentile() -> None:
    assert LatencySummary.of([0.25]) == LatencySummary(250, 250, 250, 250, 250)


def test_no_times_have_no_summary() -> None:
    with pytest.raises(UsageError) as caught:
        LatencySummary.of([])
    assert caught.value.subject == "latency"


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 1), (3, 5)])
def test_warm_up_calls_are_made_but_not_timed(warmup: int, repeats: int) -> None:
    calls: list[int] = []
    times = time_runs(lambda: calls.append(1), warmup=warmup, repeats=repeats)
    assert (len(calls), len(times)) == (warmup + repeats, repeats)


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 0), (-1, 1), (0, 10_000_001), (10_000_001, 1)])
def test_numbers_that_cannot_be_meant_are_refused_before_any_call(warmup: int, repeats: int) -> None:
    calls: list[int] = []
    with pytest.raises(UsageError) as caught:
        time_runs(lambda: calls.append(1), warmup=warmup, repeats=repeats)
    assert caught.value.subject in (f"repeats={repeats}", f"warmup={warmup}")
    assert not calls


def time_of_a_call(call: Callable[[], object]) -> float:
    (seconds,) = time_runs(call, warmup=0, repeats=1)
    return seconds


def time_in_the_backend(call: Callable[[], object]) -> float:
    def function(batch: np.ndarray) -> dict[str, np.ndarray]:
        call()
        return {"y": batch}

    runner = FunctionRunner(function, outputs={"y": (None, 3, 8, 8)})
    clock = BackendClock(runner)
    given = np.ones((1, 3, 8, 8), np.float32)
    assert np.array_equal(runner.run(given)["y"], given)
    (seconds,) = clock.calls
    return seconds


@pytest.mark.parametrize("timed", [time_of_a_call, time_in_the_backend])
def test_a_time_is_what_the_call_took_in_seconds(timed: Callable[[Any], float]) -> None:
    inner: list[float] = []

    def call() -> None:
        start = time.perf_counter()
        time.sleep(0.02)  # so that reading the clocks takes a small part of the whole
        inner.append(time.perf_counter() - start)

    start = time.perf_counter()
    seconds = timed(call)
    outer = time.perf_counter() - start
    # The same clock, read around and inside the time; 1e-6 for its resolution.
    assert inner[0] - 1e-6 <= seconds <= outer + 1e-6


def test_the_clock_notes_every_call_from_when_it_is_made() -> None:
    runner = FunctionRunner(lambda batch: {"y": batch})
    runner.run(np.ones((1, 3, 8, 8), np.float32))
    clock = BackendClock(runner)
    assert clock.calls == []
    for count in (1, 2):
        runner.run(np.ones((1, 3, 8, 8), np.float32))
        assert len(clock.calls) == count


def entry(name: str, ms: float) -> OperatorTime:
    return OperatorTime(name, "Conv", "CPU", "fp32", ms)


def test_the_median_call_counts_not_the_one_that_was_interrupted() -> None:
    (found,) = median_times([[entry("a", 1.0)], [entry("a", 50.0)], [entry("a", 2.0)]])
    assert found == entry("a", 2.0)


def test_entries_of_one_call_are_added_before_the_median() -> None:
    (found,) = median_times([[entry("a", 1.0), entry("a", 2.0)], [entry("a", 4.0)], [entry("a", 9.0)]])
    assert found.ms == 4.0


def test_a_call_without_the_operator_counts_as_none() -> None:
    (found,) = median_times([[entry("a", 1.0)], [], [], [entry("a", 3.0)]])
    assert found.ms == 0.5


def test_what_differs_in_more_than_time_stays_apart_in_order() -> None:
    other = OperatorTime("a", "Conv", "CPU", "int8", 1.0)
    assert median_times([[entry("b", 1.0), entry("a", 2.0), other]]) == (entry("b", 1.0), entry("a", 2.0), other)

"""Times are milliseconds, percentiles are numpy's, and warm-up calls do not count."""

import time

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.runtime.timing import LatencySummary, time_runs


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

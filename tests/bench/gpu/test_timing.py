"""Sums of traces are those of `trtexec`, and what bounds a result is said."""

from __future__ import annotations

import json

import pytest

from densenet_deploy.bench.gpu.timing import GpuTiming, Spread, Trace
from densenet_deploy.errors import BackendError


def timing(compute: float = 1.0, enqueue: float = 0.1, *, no_graph: str = "", **copies: float) -> GpuTiming:
    traces = tuple(Trace(i * compute, (i + 1) * compute, compute, enqueue, **copies) for i in range(20))
    return GpuTiming(traces, batch=4, transfers=bool(copies), no_graph=no_graph)


@pytest.mark.parametrize(
    ("count", "p90", "p95", "p99"),
    [(1, 1, 1, 1), (9, 9, 9, 9), (10, 9, 10, 10), (20, 18, 19, 20), (100, 90, 95, 100), (1000, 900, 950, 991)],
)
def test_percentiles_are_times_that_occurred_at_the_index_of_trtexec(count, p90, p95, p99):
    """By hand: of 10 times (1 − 0.9)·10 = 1 is left out, of 1000 in float32 (1 − 0.99)·1000 is 9.99999."""
    spread = Spread.of([float(number) for number in range(count, 0, -1)])
    assert (spread.min, spread.max) == (1, count)
    assert (spread.p90, spread.p95, spread.p99) == (p90, p95, p99)


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle():
    spread = Spread.of([4.0, 1.0, 2.0, 9.0])
    assert (spread.median, spread.mean) == (3.0, 4.0)


def test_latency_adds_up_what_throughput_sees_overlap():
    found = timing(compute=2.0, upload=0.5, download=0.25)
    assert found.latency.median == 2.75
    assert found.images_per_second == pytest.approx(20 * 4 / 0.040)


def test_it_says_nothing_where_nothing_is_the_matter():
    assert timing().warnings == ()
    assert timing(upload=0.99, download=0.99).warnings == ()


def test_bound_by_launch_above_four_fifths_of_the_time_to_compute():
    assert timing(enqueue=0.8).warnings == ()
    (warning,) = timing(enqueue=0.81).warnings
    assert warning.startswith("bound by launch: launching takes 0.810 ms, computing 1.000 ms")
    assert "a CUDA graph" not in warning
    (warning,) = timing(enqueue=0.81, no_graph="switched off").warnings
    assert "a CUDA graph or a larger batch" in warning


def test_bound_by_copies_when_one_takes_as_long_as_computing():
    assert timing(upload=1.0, download=0.1).warnings == ("bound by copies: to the GPU 1.000 ms, computing 1.000 ms",)
    assert timing(upload=0.1, download=2.0).warnings == ("bound by copies: from the GPU 2.000 ms, computing 1.000 ms",)


def test_unstable_clocks_above_a_coefficient_of_variation_of_2_5_percent():
    def varying(spread: float) -> GpuTiming:
        times = [1 - spread, 1 + spread] * 50
        return GpuTiming(tuple(Trace(i, i + 1, time, 0.1) for i, time in enumerate(times)), 1, transfers=False)

    assert varying(0.024).warnings == ()
    (warning,) = varying(0.026).warnings
    assert warning.startswith("clocks are unstable: the time to compute varies by 2.6%")
    assert "nvidia-smi" in warning


def test_json_has_no_times_of_copies_that_were_not_made():
    without, copied = timing(no_graph="because").to_json(), timing(upload=0.5).to_json()
    json.dumps([without, copied], allow_nan=False)
    assert (without["h2d_ms"], without["d2h_ms"]) == (None, None)
    assert (without["cuda_graph"], without["no_cuda_graph"]) == (False, "because")
    assert copied["h2d_ms"]["median"] == 0.5
    assert (copied["cuda_graph"], copied["no_cuda_graph"]) == (True, None)


def test_nothing_timed_is_an_error():
    with pytest.raises(BackendError, match="no inference ended after the warm-up"):
        GpuTiming((), 1, transfers=False)

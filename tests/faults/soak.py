"""Runs one model for a long time and tells whether its last tenth was as quick, and the process as small, as its first.

`python -m tests.faults.soak MODEL BACKEND SECONDS` prints one JSON object. Memory is bounded: the time of a call is one
count in a histogram of its tenth, whose bins are 0.1 % wide. What is judged is the processor time of all threads: on a
machine that others use too the time on the wall says what those do, and is reported beside it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from tests.runtime.backends.leak_probe import resident_bytes

TENTHS = 10
_BINS = 30_000  # up to e³⁰ ns, three hours
_LEAST_CALLS = 100


@dataclass(frozen=True)
class Soak:
    """What was seen: calls in all, percentiles of the first and last tenth, resident bytes after each, and the peak."""

    seconds: float
    calls: int
    p99_first_ms: float
    p99_last_ms: float
    p50_first_ms: float
    p50_last_ms: float
    wall_p99_first_ms: float
    wall_p99_last_ms: float
    bytes_first: int
    bytes_last: int
    bytes_peak: int

    @property
    def slowdown(self) -> float:
        return self.p99_last_ms / self.p99_first_ms

    @property
    def growth_bytes(self) -> int:
        return max(self.bytes_last, self.bytes_peak) - self.bytes_first


def soak(call: Callable[[], object], seconds: float) -> Soak:
    """Call `call` for `seconds`, after a hundredth of that to warm up."""
    _call_until(call, time.monotonic() + seconds / 100, *np.zeros((2, _BINS), np.int64))
    counts = np.zeros((2, TENTHS, _BINS), np.int64)
    counts += 1  # so that every page of it is there before memory is measured
    counts -= 1
    start, resident = time.monotonic(), []
    for tenth in range(TENTHS):
        _call_until(call, start + seconds * (tenth + 1) / TENTHS, *counts[:, tenth])
        resident.append(resident_bytes())
    took = time.monotonic() - start
    ends = [_percentile(counts[0, tenth], percent) for percent in (99, 50) for tenth in (0, -1)]
    wall = [_percentile(counts[1, tenth], 99) for tenth in (0, -1)]
    return Soak(took, int(counts[0].sum()), *ends, *wall, resident[0], resident[-1], max(resident))


def _call_until(call: Callable[[], object], end: float, busy: np.ndarray, wall: np.ndarray) -> None:
    """Call, and count each time on the processor in `busy`, on the wall in `wall`."""
    calls = 0
    while time.monotonic() < end or calls < _LEAST_CALLS:
        wall_start, start = time.perf_counter_ns(), time.process_time_ns()
        call()
        busy[_bin(time.process_time_ns() - start)] += 1
        wall[_bin(time.perf_counter_ns() - wall_start)] += 1
        calls += 1


def _bin(nanoseconds: int) -> int:
    return int(1000 * math.log(max(1, nanoseconds)))


def _percentile(counts: np.ndarray, percent: float) -> float:
    """The milliseconds that `percent` of the calls took at most."""
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() * percent / 100))
    return math.exp((place + 0.5) / 1000) / 1e6


def soak_runner(runner: Runner, seconds: float) -> Soak:
    """Give `runner` one image after the other, out of a few."""
    (spec,) = runner.inputs
    shape = (1, *(size or 1 for size in spec.shape[1:]))
    feeds = [{spec.name: np.random.default_rng(seed).standard_normal(shape, np.float32)} for seed in range(7)]
    number = 0

    def call() -> object:
        nonlocal number
        number += 1
        return runner.run(feeds[number % len(feeds)])

    return soak(call, seconds)


def main(model: Path, backend: str, seconds: float) -> None:
    with open_runner(model, backend, "cpu", RunnerOptions(threads=1)) as runner:
        print(json.dumps(asdict(soak_runner(runner, seconds))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))

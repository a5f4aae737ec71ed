"""Time calls and operators, and summarize the times: mean, percentiles and medians, in milliseconds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_range

if TYPE_CHECKING:
    from densenet_deploy.runtime.feeds import Array
    from densenet_deploy.runtime.runner import Runner

WARM_UP_CALLS: Final = 2
"""Calls of a profiled model that do not count."""

_MOST_RUNS: Final = 10_000_000


@dataclass(frozen=True)
class LatencySummary:
    """Mean and percentiles in milliseconds.

    Percentiles interpolate linearly between the sorted times (type 7 of Hyndman and Fan 1996, numpy's default).
    """

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Summarize the times of single calls.

        >>> LatencySummary.of([0.001, 0.003]).p50
        2.0

        Raises:
            UsageError: if there are none.
        """
        if not seconds:
            raise UsageError("latency", "has no times to summarize", "time at least one call")
        times_ms = np.multiply(seconds, 1e3)
        percentiles = np.percentile(times_ms, (50, 90, 95, 99))
        return cls(float(times_ms.mean()), *map(float, percentiles))


class BackendClock:
    """Times the backend's part of each `run` from now on: the rest of a `run` are our checks and copies.

    `calls` holds the seconds of each call.

    >>> clock = BackendClock(runner)                                        # doctest: +SKIP
    >>> runner.run(feeds)                                                   # doctest: +SKIP
    >>> clock.calls                                                         # doctest: +SKIP
    [0.0151]
    """

    def __init__(self, runner: Runner) -> None:
        self.calls: list[float] = []
        run = runner._run  # noqa: SLF001 - the clock belongs to the runner

        def timed(handle: Any, feeds: dict[str, Array]) -> dict[str, Array]:
            start = perf_counter()
            results = run(handle, feeds)
            self.calls.append(perf_counter() - start)
            return results

        runner._run = timed  # type: ignore[method-assign]  # noqa: SLF001


def time_runs(call: Callable[[], object], *, warmup: int, repeats: int) -> list[float]:
    """Return the seconds that each of `repeats` calls took, after `warmup` calls that do not count.

    Raises:
        UsageError: if `repeats` is under 1 or `warmup` under 0.
    """
    require_range("warmup", warmup, 0, _MOST_RUNS)
    require_range("repeats", repeats, 1, _MOST_RUNS)
    for _ in range(warmup):
        call()
    return [_seconds_of(call) for _ in range(repeats)]


def _seconds_of(call: Callable[[], object]) -> float:
    start = perf_counter_ns()
    call()
    return (perf_counter_ns() - start) * 1e-9


@dataclass(frozen=True)
class OperatorTime:
    """One operator as a backend reports it.

    Attributes:
        name: the node, or for PyTorch the module, that it belongs to; optimizers rename and merge nodes.
        operator: its type, as the backend calls it.
        provider: what ran it: an execution provider or a device.
        precision: the type it computed in: fp32, fp16, bf16 or int8; unknown where the backend does not say.
        ms: milliseconds per call, without those of the operators that it calls itself.
    """

    name: str
    operator: str
    provider: str
    precision: str
    ms: float


def median_times(calls: Sequence[Iterable[OperatorTime]]) -> tuple[OperatorTime, ...]:
    """Return each operator once, with the median of its times in `calls`, in the order of first appearance.

    Entries of one call that differ only in time are added first. The median, because a busy machine interrupts
    arbitrary operators for milliseconds.

    >>> calls = [[OperatorTime("conv0", "Conv", "CPU", "fp32", ms)] for ms in (1.0, 1.2, 30.0)]
    >>> median_times(calls)[0].ms
    1.2
    """
    times: dict[tuple[str, str, str, str], list[float]] = defaultdict(lambda: [0.0] * len(calls))
    for number, call in enumerate(calls):
        for entry in call:
            times[entry.name, entry.operator, entry.provider, entry.precision][number] += entry.ms
    return tuple(OperatorTime(*key, ms=statistics.median(taken)) for key, taken in times.items())

"""Time calls, and sum the times up as people read them: mean and percentiles, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_range

if TYPE_CHECKING:
    from densenet_deploy.runtime.feeds import Array
    from densenet_deploy.runtime.runner import Runner

_MOST_RUNS = 10_000_000


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
        """Sum up the times of single calls.

        >>> LatencySummary.of([0.001, 0.003]).p50
        2.0

        Raises:
            UsageError: if there are none.
        """
        if not seconds:
            raise UsageError("latency", "there are no times to sum up", "time at least one call")
        times_ms = np.asarray(seconds, dtype=np.float64) * 1e3
        percentiles = np.percentile(times_ms, (50, 90, 95, 99))
        return cls(float(times_ms.mean()), *map(float, percentiles))


class BackendClock:
    """Times the backend's own calls of a runner from now on: what is left of a `run` are our checks and copies.

    `calls` are seconds, one of each call.

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

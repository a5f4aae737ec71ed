"""What is asked of a model in one round: call after call, several callers at once, or the frames of a camera.

==============  =======================================================================================================
single-stream   one call after another; a time is that of one call
offline         all images are available: one caller per runner, all at the same time; throughput is what counts
camera          a frame every 1/fps seconds; the model takes the newest frame and older ones are dropped; a time runs
                from the arrival of a frame to its result, and a result that arrives after the next frame is late
==============  =======================================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

SCENARIOS: Final = ("single-stream", "offline", "camera")

Call = Callable[[], object]

_WARM_UP_CALLS: Final = 2  # the first calls of a round find cold caches and sleeping threads
_MIN_CALLS: Final = 3
_SLOW_SECONDS: Final = 1.0


@dataclass(frozen=True)
class RoundTiming:
    """The times of one candidate in one round.

    Attributes:
        seconds: of each timed call (camera: from a frame's arrival to its result).
        wall_seconds: from the start of the first timed call to the end of the last; 0 if not measured.
        frames, dropped, late: camera only: frames that arrived, were dropped, or gave their results too late.
        peak_memory_bytes: the largest resident set of the process so far.
        inside_seconds: the part of the sum of `seconds` spent in the backend's own calls; None if not measured.
    """

    seconds: tuple[float, ...]
    wall_seconds: float = 0.0
    frames: int = 0
    dropped: int = 0
    late: int = 0
    peak_memory_bytes: int = 0
    inside_seconds: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def single_stream(call: Call, seconds: float) -> RoundTiming:
    """Call for about `seconds`, at least three times."""
    _warm_up(call)
    start = time.perf_counter()
    times = _calls_until(call, start + seconds)
    return RoundTiming(tuple(times), time.perf_counter() - start)


def offline(calls: Sequence[Call], seconds: float) -> RoundTiming:
    """Repeat each of `calls` in a thread of its own for about `seconds`."""
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(_warm_up, calls))
        start = time.perf_counter()
        streams = list(pool.map(lambda call: _calls_until(call, start + seconds), calls))
        return RoundTiming(tuple(taken for times in streams for taken in times), time.perf_counter() - start)


def camera(call: Call, seconds: float, fps: float) -> RoundTiming:
    """Process the frames that arrive within `seconds`, at least three, always taking the newest."""
    _warm_up(call)
    frames = max(_MIN_CALLS, round(seconds * fps))
    times: list[float] = []
    dropped = following = 0
    start = time.perf_counter()
    while following < frames:
        time.sleep(max(0.0, start + following / fps - time.perf_counter()))
        arrived = int((time.perf_counter() - start) * fps)
        newest = max(following, min(arrived, frames - 1))
        dropped += newest - following
        call()
        times.append(time.perf_counter() - start - newest / fps)
        following = newest + 1
    late = sum(taken > 1 / fps for taken in times)
    return RoundTiming(tuple(times), time.perf_counter() - start, frames, dropped, late)


def _warm_up(call: Call) -> None:
    """Call twice, or once if that takes more than a second: cold caches do not matter to such a call."""
    start = time.perf_counter()
    for _ in range(_WARM_UP_CALLS):
        call()
        if time.perf_counter() - start > _SLOW_SECONDS:
            return


def _calls_until(call: Call, deadline: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter()
    while len(times) < _MIN_CALLS or end < deadline:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        times.append(end - start)
    return times

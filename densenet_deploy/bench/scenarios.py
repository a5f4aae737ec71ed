"""What a turn asks of a model: call after call, several callers at once, or the frames of a camera as they come.

==============  =======================================================================================================
single stream   one call after the other; a time is that of one call
offline         all images are there: one caller for each runner, all at the same time; throughput is what counts
camera          a frame every 1/fps seconds; whoever is free takes the newest and the frames before it are dropped; a
                time runs from the arrival of a frame to its result, and a result later than the next frame is late
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

_WARM_UP_CALLS: Final = 2  # the first calls of a turn find cold caches and sleeping threads
_FEWEST_CALLS: Final = 3
_SLOW_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Turn:
    """One turn of a contender.

    Attributes:
        seconds: of each timed call (camera: from a frame's arrival to its result).
        peak_memory_bytes: the most memory that the process has held so far.
        wall_seconds: from the start of the first timed call to the end of the last; 0 where it was not measured.
        frames, dropped, late: of a camera: frames that came, that nobody took, whose results came after the next frame.
        inside_seconds: how much of `seconds`, taken together, the backend's own calls took; None where nobody looked.
    """

    seconds: tuple[float, ...]
    peak_memory_bytes: int
    wall_seconds: float = 0.0
    frames: int = 0
    dropped: int = 0
    late: int = 0
    inside_seconds: float | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Timing:
    """What was timed in one turn; see `Turn`."""

    seconds: list[float]
    wall_seconds: float
    frames: int = 0
    dropped: int = 0
    late: int = 0


def single_stream(call: Call, seconds: float) -> Timing:
    """Call for about `seconds`, three times at least."""
    _warm_up(call)
    start = time.perf_counter()
    times = _calls_until(call, start + seconds)
    return Timing(times, time.perf_counter() - start)


def offline(calls: Sequence[Call], seconds: float) -> Timing:
    """Let every one of `calls` be called again and again by a thread of its own, for about `seconds`."""
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(_warm_up, calls))
        start = time.perf_counter()
        streams = list(pool.map(lambda call: _calls_until(call, start + seconds), calls))
        return Timing([taken for times in streams for taken in times], time.perf_counter() - start)


def camera(call: Call, seconds: float, fps: float) -> Timing:
    """Serve the frames that arrive within `seconds`, three at least, the newest first."""
    _warm_up(call)
    frames = max(_FEWEST_CALLS, round(seconds * fps))
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
    return Timing(times, time.perf_counter() - start, frames, dropped, late)


def _warm_up(call: Call) -> None:
    """Two calls, or one where it takes more than a second: cold caches are not what makes such a call slow."""
    start = time.perf_counter()
    for _ in range(_WARM_UP_CALLS):
        call()
        if time.perf_counter() - start > _SLOW_SECONDS:
            return


def _calls_until(call: Call, deadline: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter()
    while len(times) < _FEWEST_CALLS or end < deadline:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        times.append(end - start)
    return times

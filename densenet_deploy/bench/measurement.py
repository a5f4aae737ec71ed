"""What the rounds of one candidate say: latency, throughput and memory, how certain that is, and what changed since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Any, Final, Self

import numpy as np

from densenet_deploy.bench.candidate import Candidate, Opening
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.errors import UsageError
from densenet_deploy.records import Range, fields_to_plain
from densenet_deploy.runtime.timing import LatencySummary

NOISY_VARIATION: Final = 0.05  # of rounds; above it they differ by more than the differences of usual interest
NOTICEABLE_OVERHEAD: Final = 0.1  # of a call, outside of the backend's own call


@dataclass(frozen=True)
class CameraCount:
    """The frames that arrived, were dropped for newer ones, or gave their results too late."""

    fps: float
    frames: int
    dropped: int
    late: int

    @property
    def deadline_ms(self) -> float:
        """The time until the next frame arrives."""
        return 1e3 / self.fps

    @property
    def missed(self) -> float:
        """The fraction of frames that were dropped or late."""
        return (self.dropped + self.late) / self.frames

    def to_json(self) -> dict[str, object]:
        """Return the counts with plain types."""
        return fields_to_plain(self) | {"deadline_ms": self.deadline_ms, "missed": self.missed}


@dataclass(frozen=True)
class Comparison:
    """A measurement against one of an earlier run; `speedup` is how many times as fast the model is now.

    The rounds of two runs are not paired, so both sides are resampled on their own. A machine that drifted in between
    shifts all rounds of a run together, which no interval from within the runs can show.
    """

    before_ms: float
    speedup: Interval
    verdict: str
    same_file: bool

    @classmethod
    def of(cls, before: Measurement, now: Measurement) -> Self:
        """Compare two measurements of the same configuration."""
        speedup = Interval.of_ratio(before.rounds_ms, now.rounds_ms)
        verdict = "faster" if speedup.low > 1 else "slower" if speedup.high < 1 else "no difference"
        return cls(before.median_ms, speedup, verdict, before.sha256 == now.sha256)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one candidate. Times are in milliseconds, memory in bytes.

    Attributes:
        model: the file, or the name of a network that has none.
        backend, version, device, provider, precision, threads: where and how it ran, as the backend reports.
        latency_ms: `p50` is the median over rounds of the median call, the figure that reports show; the others are of
            all calls.
        interval_ms: the 95 % bootstrap interval of `p50`. Rounds are resampled, not calls: neighbouring calls share the
            state of the machine, so they are not independent.
        rounds_ms: the median call of each round.
        images_per_second: images over the time they took, including the time spent waiting for frames of a camera.
        load_ms, first_ms: of opening the model, including the import of the backend, and of the first call.
        variation, call_variation: standard deviation over mean, of `rounds_ms` and of all calls.
        outside_share: fraction of the calls' time spent outside of the backend's own call, in copies and checks. None
            if not measured: with several callers, with a camera, and on devices other than the CPU.
        steady: whether the times had settled after `warm_up_rounds`.
        speedup: how many times as fast it ran as the first candidate of its batch size; None for that one.
        compared: the same configuration in an earlier run.
    """

    model: str
    sha256: str
    backend: str
    version: str
    device: str
    provider: str
    precision: str
    batch: int
    threads: int
    streams: int
    scenario: str
    latency_ms: LatencySummary
    interval_ms: tuple[float, float]
    rounds_ms: tuple[Annotated[float, Range(1e-9)], ...]
    images_per_second: float
    peak_memory_bytes: int
    device_memory_bytes: int | None
    load_ms: float
    first_ms: float
    calls: int
    variation: float
    call_variation: float
    outside_share: float | None
    warm_up_rounds: int
    steady: bool
    camera: CameraCount | None
    speedup: Interval | None = None
    compared: Comparison | None = None

    def __post_init__(self) -> None:
        require_times(self.latency_ms.p50, self.interval_ms)

    @classmethod
    def of(
        cls, candidate: Candidate, opening: Opening, timings: Sequence[RoundTiming], *, scenario: str, **facts: Any
    ) -> Self:
        """Summarize the rounds of `candidate`; `facts` are the fields that they do not determine."""
        placement = opening.placement
        seconds = [call for timing in timings for call in timing.seconds]
        rounds_ms = tuple(timing.median * 1e3 for timing in timings)
        median = Interval.of(rounds_ms)
        return cls(
            model=candidate.title,
            backend=placement.backend,
            version=placement.version,
            device=placement.device,
            provider=placement.provider,
            precision=placement.precision,
            batch=candidate.batch,
            threads=placement.threads,
            streams=candidate.streams,
            scenario=scenario,
            latency_ms=replace(LatencySummary.of(seconds), p50=median.median),
            interval_ms=(median.low, median.high),
            rounds_ms=rounds_ms,
            images_per_second=len(seconds) * candidate.batch / sum(timing.wall_seconds for timing in timings),
            peak_memory_bytes=max(timing.peak_memory_bytes for timing in timings),
            device_memory_bytes=opening.device_memory_bytes,
            load_ms=opening.load_seconds * 1e3,
            first_ms=opening.first_seconds * 1e3,
            calls=len(seconds),
            variation=variation(rounds_ms),
            call_variation=variation(seconds),
            outside_share=_outside_share(opening, timings),
            camera=None if candidate.fps is None else _count_frames(candidate.fps, timings),
            **facts,
        )

    @property
    def median_ms(self) -> float:
        """The median over rounds of the median call."""
        return self.latency_ms.p50

    @property
    def configuration(self) -> tuple[object, ...]:
        """What makes two measurements comparable: the file's name, and how and where it ran."""
        fps = None if self.camera is None else self.camera.fps
        where = self.backend, self.device, self.batch, self.threads, self.streams, self.scenario
        return PurePath(self.model).name, fps, *where


def variation(values: Sequence[float]) -> float:
    """Return the standard deviation over the mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return float(np.std(values, ddof=1)) / mean


def _outside_share(opening: Opening, timings: Sequence[RoundTiming]) -> float | None:
    inside = [timing.inside_seconds for timing in timings if timing.inside_seconds is not None]
    if opening.placement.device != "cpu" or len(inside) < len(timings):
        return None
    return 1 - math.fsum(inside) / math.fsum(seconds for timing in timings for seconds in timing.seconds)


def _count_frames(fps: float, timings: Sequence[RoundTiming]) -> CameraCount:
    frames, dropped, late = (sum(getattr(t, name) for t in timings) for name in ("frames", "dropped", "late"))
    return CameraCount(fps, frames, dropped, late)


def require_times(median_ms: float, interval_ms: tuple[float, float] | None) -> None:
    """Check the median of a measurement, and that its interval is one.

    Raises:
        UsageError: if a time is not positive, or the lower end of the interval is above the upper one.
    """
    low, high = interval_ms or (median_ms, median_ms)
    if not (median_ms > 0 and 0 < low <= high):
        why = f"is not the interval of a time: {low:g} to {high:g} ms around {median_ms:g} ms"
        raise UsageError("interval_ms", why, "measure again")

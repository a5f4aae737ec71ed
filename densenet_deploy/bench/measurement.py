"""What the turns of one candidate say: latency, throughput, memory, how sure that is, as JSON and as a row of CSV."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from densenet_deploy.bench.candidate import Candidate, Opening
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.runtime.timing import LatencySummary

NOISY_VARIATION: Final = 0.05  # of rounds: above it, what the rounds say differs more than what is usually asked

NOTICED_OUTSIDE: Final = 0.1  # of a call that is not the backend's own


@dataclass(frozen=True)
class CameraCount:
    """Frames that came, that were dropped for newer ones, whose results were late; `missed` is both as a fraction."""

    fps: float
    frames: int
    dropped: int
    late: int

    @property
    def deadline_ms(self) -> float:
        """Until the next frame comes."""
        return 1e3 / self.fps

    @property
    def missed(self) -> float:
        return (self.dropped + self.late) / self.frames

    def to_json(self) -> dict[str, object]:
        """Return the counts with plain types."""
        return {**dataclasses.asdict(self), "deadline_ms": self.deadline_ms, "missed": self.missed}


@dataclass(frozen=True)
class Measurement:
    """One candidate's turns, one a round, and how it came up. Times in milliseconds, memory in bytes.

    `speedup` is how many times as fast it ran as the first candidate of its batch size, from the rounds' ratios; None
    for that one itself.
    """

    candidate: Candidate
    scenario: str
    sha256: str
    opening: Opening
    timings: tuple[RoundTiming, ...]
    warm_up_rounds: int
    steady: bool
    speedup: Interval | None = None

    @functools.cached_property
    def latency(self) -> LatencySummary:
        """Of all calls of all rounds."""
        return LatencySummary.of([seconds for turn in self.timings for seconds in turn.seconds])

    @functools.cached_property
    def rounds_ms(self) -> tuple[float, ...]:
        """The median call of each round."""
        return tuple(turn.median * 1e3 for turn in self.timings)

    @functools.cached_property
    def interval_ms(self) -> Interval:
        """The median of the rounds' medians and its 95 % bootstrap interval.

        Rounds are drawn, not calls: neighbouring calls share the state of the machine, so they are no independent
        witnesses.
        """
        return Interval.of(self.rounds_ms)

    @property
    def calls(self) -> int:
        return sum(len(turn.seconds) for turn in self.timings)

    @property
    def images_per_second(self) -> float:
        """Images done over the time it took, in which a camera's frames are waited for."""
        return self.calls * self.candidate.batch / sum(turn.wall_seconds for turn in self.timings)

    @property
    def peak_memory_bytes(self) -> int:
        return max(turn.peak_memory_bytes for turn in self.timings)

    @property
    def variation(self) -> float:
        """Coefficient of variation (standard deviation over mean) of the rounds' medians."""
        return variation(self.rounds_ms)

    @property
    def outside_share(self) -> float | None:
        """The part of the calls' time, 0 to 1, that passes outside of the backend's own call, in copies and checks.

        None where it was not measured: with several callers, of a camera's frames, and on other devices than the CPU.
        """
        if self.opening.placement.device != "cpu" or any(turn.inside_seconds is None for turn in self.timings):
            return None
        inside = math.fsum(turn.inside_seconds or 0.0 for turn in self.timings)
        return 1 - inside / math.fsum(seconds for turn in self.timings for seconds in turn.seconds)

    @property
    def camera(self) -> CameraCount | None:
        if self.candidate.fps is None:
            return None
        frames, dropped, late = (sum(getattr(t, name) for t in self.timings) for name in ("frames", "dropped", "late"))
        return CameraCount(self.candidate.fps, frames, dropped, late)

    def to_json(self) -> dict[str, object]:
        """Return everything with plain types."""
        placement, interval = self.opening.placement, self.interval_ms
        return {
            "model": str(self.candidate.model),
            "sha256": self.sha256,
            "backend": placement.backend,
            "version": placement.version,
            "device": placement.device,
            "provider": placement.provider,
            "precision": placement.precision,
            "batch": self.candidate.batch,
            "threads": placement.threads,
            "streams": self.candidate.streams,
            "scenario": self.scenario,
            "latency_ms": dataclasses.asdict(self.latency),
            "interval_ms": [interval.low, interval.high],
            "rounds_ms": list(self.rounds_ms),
            "images_per_second": self.images_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device_memory_bytes": self.opening.device_memory_bytes,
            "load_ms": self.opening.load_seconds * 1e3,
            "first_ms": self.opening.first_seconds * 1e3,
            "calls": self.calls,
            "variation": self.variation,
            "call_variation": variation([seconds for turn in self.timings for seconds in turn.seconds]),
            "outside_share": self.outside_share,
            "warm_up_rounds": self.warm_up_rounds,
            "steady": self.steady,
            "camera": None if self.camera is None else self.camera.to_json(),
            "speedup": None if self.speedup is None else dataclasses.asdict(self.speedup),
        }


def flat(facts: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested facts as one row: `latency_ms` with `p50` becomes `latency_ms.p50`, lists are joined by spaces."""
    row: dict[str, object] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            row |= flat(value, f"{prefix}{key}.")
        else:
            row[prefix + key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return row


def variation(values: list[float] | tuple[float, ...]) -> float:
    """Standard deviation over mean; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return float(np.std(values, ddof=1)) / mean

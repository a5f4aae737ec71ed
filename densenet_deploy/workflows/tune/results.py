"""What is known of a candidate: how fast it ran, how good its answers are, and what that means for the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from densenet_deploy.bench.rounds import Interval
from densenet_deploy.parity.compare import Parity
from densenet_deploy.workflows.tune.candidates import Candidate

EQUAL_SQNR_DB = 60.0  # a thousandth of the signal: more decibels than that change no answer worth telling apart

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Lap:
    """How a candidate ran in a heat.

    Attributes:
        speed: how many times as many images a second as the reference of the tuning, side by side with it.
        latency_ms, low_ms, high_ms: the median of the rounds' median calls and its 95 % interval.
        peak_memory_bytes: of its process.
        device, precision: where and in what the backend says it ran.
        rounds: how many it was timed in.
    """

    speed: Interval
    latency_ms: float
    low_ms: float
    high_ms: float
    peak_memory_bytes: int
    device: str
    precision: str
    rounds: int

    def to_json(self) -> dict[str, object]:
        """Return the lap with plain types."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, facts: Facts) -> Self:
        """Read what `to_json` wrote; KeyError or TypeError if it is something else."""
        return cls(**{**facts, "speed": Interval(**facts["speed"])})


@dataclass(frozen=True)
class Quality:
    """How good the answers of a file on a backend are.

    Attributes:
        parity: with the float file, on `images` of `kind`.
        top1: accuracy on `labelled` class folders, a fraction; None without any.
    """

    parity: Parity
    images: int
    kind: str
    top1: float | None = None
    labelled: int = 0

    @property
    def is_broken(self) -> bool:
        """Whether it gives NaN or Inf."""
        return bool(self.parity.nonfinite)

    @property
    def score(self) -> float:
        """More is better: top-1 where it is known, else SQNR in dB up to `EQUAL_SQNR_DB`."""
        if self.is_broken:
            return -math.inf
        return min(self.parity.sqnr_db, EQUAL_SQNR_DB) if self.top1 is None else self.top1

    def drop(self, best_top1: float | None) -> float | None:
        """Return the percentage points lost to the best float model; without labels, of images answered otherwise."""
        if self.top1 is not None and best_top1 is not None:
            return 100 * (best_top1 - self.top1)
        return None if self.parity.top1_agreement is None else 100 * (1 - self.parity.top1_agreement)

    def to_json(self) -> dict[str, object]:
        """Return the quality with plain types; `identical` says that an SQNR of null is an infinite one."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return facts | {"parity": self.parity.to_json(), "identical": self.parity.sqnr_db == math.inf}

    @classmethod
    def read(cls, facts: Facts) -> Self:
        """Read what `to_json` wrote; KeyError or TypeError if it is something else."""
        values = {name: value for name, value in facts.items() if name != "identical"}
        return cls(**{**values, "parity": Parity.from_json(facts["parity"])})


@dataclass(frozen=True)
class Limits:
    """What must hold of the choice; None where nothing is asked. See `TuneOptions`."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None

    def missed(self, latency_ms: float, memory_bytes: float, drop: float | None) -> tuple[str, ...]:
        """Return the names of the limits that these figures do not keep; an unknown drop keeps none."""
        kept = {
            "max-drop": self.max_drop is None or (drop is not None and drop <= self.max_drop + 1e-9),
            "max-latency": self.max_latency_ms is None or latency_ms <= self.max_latency_ms,
            "max-memory": self.max_memory_bytes is None or memory_bytes <= self.max_memory_bytes,
        }
        return tuple(name for name, holds in kept.items() if not holds)

    def to_json(self) -> dict[str, object]:
        """Return the limits with plain types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Tried:
    """A candidate with all that was found out, and `fate`: why it was followed no further, or that it was the choice.

    `lap` is None where it could not run; `quality` where the search had ended for it before.
    """

    candidate: Candidate
    fate: str
    lap: Lap | None = None
    quality: Quality | None = None
    drop: float | None = None
    missed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the result with plain types."""
        file = self.candidate.file
        facts: dict[str, object] = {
            "model": str(file.path),
            "base": file.base,
            "form": file.form,
            "precision": file.precision,
            "backend": self.candidate.backend,
            "threads": self.candidate.threads,
            "batch": self.candidate.batch,
            "bytes": file.size_bytes,
            "sha256": file.sha256,
            "outcome": self.fate,
            "limits_missed": list(self.missed),
        }
        return facts | _measured(self.candidate, self.lap) | _judged(self.quality, self.drop)


def _measured(candidate: Candidate, lap: Lap | None) -> dict[str, object]:
    names = ("latency_ms", "interval_ms", "images_per_second", "speedup", "peak_memory_bytes", "device", "runs_in")
    if lap is None:
        return dict.fromkeys(names)
    values = (
        lap.latency_ms,
        [lap.low_ms, lap.high_ms],
        candidate.batch / lap.latency_ms * 1e3,
        dataclasses.asdict(lap.speed),
        lap.peak_memory_bytes,
        lap.device,
        lap.precision,
    )
    return dict(zip(names, values, strict=True))


def _judged(quality: Quality | None, drop: float | None) -> dict[str, object]:
    if quality is None:
        return {"top1": None, "parity": None, "compared_on": None, "drop_points": None}
    images = f"{quality.images} {quality.kind}"
    parity = quality.parity.to_json()
    return {"top1": quality.top1, "parity": parity, "compared_on": images, "drop_points": drop}

"""Find the candidate to ship without timing everything at length.

Three heats, each longer than the one before and with fewer in it (successive halving, Jamieson and Talwalkar 2016):

1. All candidates run a short heat, a few side by side, always with the same reference. Out of the running is whoever
   cannot run, misses a limit for sure, or is for sure slower than the same file on the same backend with other threads.
2. Answers are compared once for each file and backend that is left. Whoever keeps the limits runs a longer heat.
3. Those that are not for sure slower than the best then, five at most, run the last one side by side.

"For sure" means that 95 % intervals of the ratio to the reference do not overlap. In the last heat who is within 2 % of
the fastest is as fast; of these better answers count, then a smaller file, then less memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from densenet_deploy.analysis.choice import ModelMerits, choose
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.candidates import Candidate
from densenet_deploy.workflows.tune.results import Lap, Limits, Quality, Tried
from densenet_deploy.workflows.tune.track import Pace, Track

HEAT_SIZE: Final = 5
PACES: Final = (Pace(3, 0.1), Pace(7, 0.15), Pace(15, 0.25))
_SURELY_OVER: Final = 1.1  # a latency this much above the limit in the first heat will not come down to it


@dataclass(frozen=True)
class Question:
    """What to look for: limits and the goal, see `TuneOptions`."""

    limits: Limits
    goal: str = "latency"


@dataclass
class Search:
    """One search, and what it knows so far."""

    track: Track
    question: Question
    listener: Listener = ignore
    laps: dict[Candidate, Lap] = field(default_factory=dict)
    qualities: dict[tuple[str, str], Quality] = field(default_factory=dict)
    fates: dict[Candidate, str] = field(default_factory=dict)

    def run(self, candidates: Sequence[Candidate]) -> tuple[Tried, ...]:
        """Search, and return what is known of every candidate, in the order given; at most one was the choice."""
        self._race(candidates, PACES[0], "first heat")
        running = self._out_of_limits(self._of_goal(self._surviving(candidates)))
        running = self._slower_siblings(running)
        self._compare(candidates)
        eligible = [one for one in running if one not in self.fates and self._keeps_limits(one)]
        eligible = self._surely_slower(eligible)
        if len(eligible) > 1:
            self._race(eligible, PACES[1], "second heat")
            eligible = self._fastest(self._surely_slower([one for one in eligible if self._keeps_limits(one)]))
        if len(eligible) > 1:
            self._race(eligible, PACES[2], "last heat")
            eligible = [one for one in eligible if self._keeps_limits(one)]
        self._choose(eligible)
        return tuple(self._tried(one) for one in candidates)

    def quality_of(self, one: Candidate) -> Quality | None:
        """How good its answers are, if that was measured."""
        return self.qualities.get((one.file.sha256, one.backend))

    @property
    def best_top1(self) -> float | None:
        """The best top-1 of a float file."""
        found = [
            quality.top1
            for one in self.laps
            if one.file.precision == "fp32" and (quality := self.quality_of(one)) and quality.top1 is not None
        ]
        return max(found, default=None)

    def _race(self, candidates: Sequence[Candidate], pace: Pace, name: str) -> None:
        for start in range(0, len(candidates), HEAT_SIZE):
            part = candidates[start : start + HEAT_SIZE]
            self.listener(f"{name}: {len(candidates)} candidates", start, len(candidates))
            for one, lap in self.track.heat(part, pace).items():
                if isinstance(lap, str):
                    self.fates[one] = lap
                else:
                    self.laps[one] = lap

    def _surviving(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        return [one for one in candidates if one not in self.fates]

    def _drop(self, candidates: Sequence[Candidate], fates: Mapping[Candidate, str]) -> list[Candidate]:
        self.fates |= fates
        return self._surviving(candidates)

    def _of_goal(self, running: list[Candidate]) -> list[Candidate]:
        """Of the goal latency, those of the smallest batch that anything runs."""
        if self.question.goal != "latency" or not running:
            return running
        least = min(one.batch for one in running)
        why = "not the smallest batch, which the goal is about; give --goal throughput to choose among batches"
        return self._drop(running, {one: why for one in running if one.batch > least})

    def _out_of_limits(self, running: list[Candidate]) -> list[Candidate]:
        return self._drop(running, {one: why for one in running if (why := self._surely_over(self.laps[one]))})

    def _surely_over(self, lap: Lap) -> str:
        limits = self.question.limits
        if limits.max_latency_ms is not None and lap.low_ms > limits.max_latency_ms * _SURELY_OVER:
            return f"over --max-latency {limits.max_latency_ms:g}"
        if limits.max_memory_bytes is not None and lap.peak_memory_bytes > limits.max_memory_bytes:
            return f"over --max-memory {limits.max_memory_bytes / 2**20:g}"
        return ""

    def _slower_siblings(self, running: list[Candidate]) -> list[Candidate]:
        """Leave out whoever is slower for sure than the same file on the same backend, with other threads or batch."""
        fates = {}
        for one in running:
            rivals = [r for r in running if (r.file, r.backend) == (one.file, one.backend)]
            best = max(rivals, key=lambda rival: self.laps[rival].speed.low)
            if self.laps[one].speed.high < self.laps[best].speed.low:
                fates[one] = f"slower than {best}"
        return self._drop(running, fates)

    def _compare(self, candidates: Sequence[Candidate]) -> None:
        """Measure the answers of every file on every backend, but not where all its candidates are over a limit."""
        pairs: dict[tuple[str, str], Candidate] = {}
        for one in candidates:
            if one in self.laps and not self._surely_over(self.laps[one]):
                pairs.setdefault((one.file.sha256, one.backend), one)
        for number, (pair, one) in enumerate(pairs.items()):
            self.listener(f"compare answers: {one.file.path.name} on {one.backend}", number, len(pairs))
            found = self.track.quality(one.file, one.backend)
            if isinstance(found, Quality):
                self.qualities[pair] = found
            else:
                self.fates |= {other: found for other in candidates if (other.file.sha256, other.backend) == pair}

    def _missed(self, one: Candidate) -> tuple[str, ...]:
        lap, quality = self.laps.get(one), self.quality_of(one)
        if lap is None:
            return ()
        drop = None if quality is None else quality.drop(self.best_top1)
        return self.question.limits.missed(lap.latency_ms, lap.peak_memory_bytes, drop)

    def _keeps_limits(self, one: Candidate) -> bool:
        quality = self.quality_of(one)
        if quality is None or quality.is_broken:
            self.fates[one] = "gives NaN or infinite values" if quality else "its answers were not compared"
            return False
        missed = self._missed(one)
        if missed:
            self.fates[one] = f"misses {' and '.join(f'--{name}' for name in missed)}"
        return not missed

    def _surely_slower(self, running: list[Candidate]) -> list[Candidate]:
        if not running:
            return []
        best = max(running, key=lambda one: self.laps[one].speed.low)
        least = self.laps[best].speed.low
        return self._drop(running, {one: f"slower than {best}" for one in running if self.laps[one].speed.high < least})

    def _fastest(self, running: list[Candidate]) -> list[Candidate]:
        ranked = sorted(running, key=lambda one: -self.laps[one].speed.median)
        return self._drop(ranked, dict.fromkeys(ranked[HEAT_SIZE:], f"{HEAT_SIZE} others were faster"))

    def _choose(self, eligible: list[Candidate]) -> None:
        if not eligible:
            return
        chosen = eligible[choose([self._merits(one) for one in eligible]).index]
        for one in eligible:
            ratio = self.laps[one].speed.median / self.laps[chosen].speed.median
            self.fates[one] = f"{ratio:.2f} x as fast as {chosen}"
        self.fates[chosen] = "chosen"

    def _merits(self, one: Candidate) -> ModelMerits:
        quality, lap = self.quality_of(one), self.laps[one]
        score = quality.score if quality is not None else -math.inf
        return ModelMerits(lap.speed.median, score, one.file.size_bytes, lap.peak_memory_bytes)

    def _tried(self, one: Candidate) -> Tried:
        lap, quality = self.laps.get(one), self.quality_of(one)
        drop = None if quality is None else quality.drop(self.best_top1)
        return Tried(one, self.fates.get(one, "not followed"), lap, quality, drop, self._missed(one))

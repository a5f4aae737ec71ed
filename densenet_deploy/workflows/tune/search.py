"""Find the trial to ship without timing everything at length.

Three rounds of timings, each longer and with fewer trials than the one before (successive halving, Jamieson and
Talwalkar 2016):

1. All trials are timed briefly, a few at a time, always beside the same reference. Those that cannot run, certainly
   miss a limit, or are certainly slower than the same file on the same backend with other threads are dropped.
2. Answers are compared once per remaining file and backend. Those that keep the limits are timed for longer.
3. Those that are not certainly slower than the fastest, five at most, are timed at length. If a trial that was dropped
   before then has the better figure, or would now be chosen, it is timed at length too.

"Certainly" means that the 95 % intervals of the ratios to the reference do not overlap. At the end, trials whose
interval overlaps that of the fastest are as fast as it; among these the better answers decide, then the smaller file,
then less memory, then the median. The choice is that of all sound trials, and was itself timed at length.

The speed of a machine drifts, so the latency of a trial is that of the reference, over the whole search, divided by the
trial's measured ratio: figures of different rounds can then be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from densenet_deploy.analysis.choice import ModelMerits, choose, overlap
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.workflows.stages import Listener, ignore
from densenet_deploy.workflows.tune.candidates import GIVEN, Trial
from densenet_deploy.workflows.tune.measure import Budget, Failure, Measurer, Quality, TrialSpeed

GROUP_SIZE: Final = 5
BUDGETS: Final = (Budget(3, 0.1), Budget(7, 0.15), Budget(15, 0.25))
_CERTAINLY_OVER: Final = 1.1  # a latency this far above the limit in the first round will not fall below it
_MAX_CHALLENGES: Final = 3
CHOSEN: Final = "chosen"


@dataclass(frozen=True)
class Limits:
    """What the choice has to keep; None means no limit. See `TuneOptions`."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_bytes: int | None = None

    def missed(self, latency_ms: float, memory_bytes: float, drop: float | None) -> tuple[str, ...]:
        """Return the names of the limits that these figures miss; an unknown drop misses any limit of it."""
        kept = {
            "max-drop": self.max_drop is None or (drop is not None and drop <= self.max_drop + 1e-9),
            "max-latency": self.max_latency_ms is None or latency_ms <= self.max_latency_ms,
            "max-memory": self.max_memory_bytes is None or memory_bytes <= self.max_memory_bytes,
        }
        return tuple(name for name, holds in kept.items() if not holds)


@dataclass
class Search:
    """One search, and what it has found out so far.

    Attributes:
        measurer: measures trials.
        limits, goal: see `TuneOptions`.
        progress: is called before every group.
        speeds: of the trials that could run.
        qualities: of the answers, by file hash and backend.
        outcomes: why a trial was dropped, or that it is the choice.
    """

    measurer: Measurer
    limits: Limits = field(default_factory=Limits)
    goal: str = "latency"
    progress: Listener = ignore
    speeds: dict[Trial, TrialSpeed] = field(default_factory=dict)
    qualities: dict[tuple[str, str], Quality] = field(default_factory=dict)
    outcomes: dict[Trial, str] = field(default_factory=dict)
    _reference_ms: list[float] = field(default_factory=list)

    def run(self, trials: Sequence[Trial]) -> Trial | None:
        """Search, and return the choice; None if no trial keeps the limits."""
        self._time(trials, BUDGETS[0], "first round")
        pool = self._for_goal(self._remaining(trials))
        within = self._drop(pool, {one: why for one in pool if (why := self._certainly_over(one))})
        running = self._without_slower_siblings(within)
        self._compare_answers(trials)
        eligible = self._not_slower([one for one in running if one not in self.outcomes and self._keeps_limits(one)])
        if len(eligible) > 1:
            self._time(eligible, BUDGETS[1], "second round")
            eligible = self._fastest(self._not_slower([one for one in eligible if self._keeps_limits(one)]))
        if len(eligible) > 1:
            self._time(eligible, BUDGETS[2], "last round")
        return self._choose([one for one in self._challenged(eligible, pool) if self._keeps_limits(one)])

    def quality_of(self, trial: Trial) -> Quality | None:
        """The quality of its answers, if that was measured."""
        return self.qualities.get((trial.file.sha256, trial.backend))

    def drop_of(self, trial: Trial) -> float | None:
        """The percentage points that it loses; None if that is not known."""
        quality = self.quality_of(trial)
        return None if quality is None else quality.drop(self.best_accuracy)

    def latency_of(self, trial: Trial) -> Interval:
        """The median call in milliseconds, and its interval."""
        speed, reference = self.speeds[trial].speed, self.measurer.reference
        call_ms = float(np.median(self._reference_ms)) * trial.batch / reference.batch
        return Interval(call_ms / speed.median, call_ms / speed.high, call_ms / speed.low)

    def limits_missed(self, trial: Trial) -> tuple[str, ...]:
        """The names of the limits that it misses."""
        if trial not in self.speeds:
            return ()
        memory = self.speeds[trial].peak_memory_bytes
        return self.limits.missed(self.latency_of(trial).median, memory, self.drop_of(trial))

    @property
    def best_accuracy(self) -> float | None:
        """The best accuracy of an FP32 file; of errors there is none to lose points of."""
        found = [self.quality_of(one) for one in self.speeds if one.file.form == GIVEN]
        known = [one.accuracy for one in found if one is not None]
        return max((one.value for one in known if one is not None), default=None)

    def _time(self, trials: Sequence[Trial], budget: Budget, name: str) -> None:
        for start in range(0, len(trials), GROUP_SIZE):
            group = trials[start : start + GROUP_SIZE]
            self.progress(f"{name}: {len(trials)} candidates", start, len(trials))
            found = self.measurer.speeds(group, budget)
            self._reference_ms += found.reference_ms
            for trial, speed in zip(group, found.speeds, strict=True):
                if isinstance(speed, Failure):
                    self.outcomes[trial] = speed.reason
                    self.speeds.pop(trial, None)
                else:
                    self.speeds[trial] = speed

    def _remaining(self, trials: Iterable[Trial]) -> list[Trial]:
        return [one for one in trials if one not in self.outcomes]

    def _drop(self, trials: Sequence[Trial], outcomes: Mapping[Trial, str]) -> list[Trial]:
        self.outcomes |= outcomes
        return self._remaining(trials)

    def _for_goal(self, running: list[Trial]) -> list[Trial]:
        """For the goal latency, keep only the smallest batch that any trial runs."""
        if self.goal != "latency" or not running:
            return running
        least = min(one.batch for one in running)
        why = "not the smallest batch, which the goal is about; give --goal throughput to choose among batches"
        return self._drop(running, {one: why for one in running if one.batch > least})

    def _certainly_over(self, trial: Trial) -> str:
        limits = self.limits
        if limits.max_latency_ms is not None and self.latency_of(trial).low > limits.max_latency_ms * _CERTAINLY_OVER:
            return f"over --max-latency {limits.max_latency_ms:g}"
        memory = self.speeds[trial].peak_memory_bytes
        if limits.max_memory_bytes is not None and memory > limits.max_memory_bytes:
            return f"over --max-memory {limits.max_memory_bytes / 2**20:g}"
        return ""

    def _without_slower_siblings(self, running: list[Trial]) -> list[Trial]:
        """Drop what is certainly slower than the same file on the same backend, with other threads or batch."""
        outcomes = {}
        for one in running:
            siblings = [other for other in running if (other.file, other.backend) == (one.file, one.backend)]
            best = max(siblings, key=self._low)
            if self.speeds[one].speed.high < self._low(best):
                outcomes[one] = f"slower than {best}"
        return self._drop(running, outcomes)

    def _compare_answers(self, trials: Sequence[Trial]) -> None:
        """Measure the answers of every file on every backend, unless all its trials are over a limit."""
        pairs: dict[tuple[str, str], Trial] = {}
        for one in trials:
            if one in self.speeds and not self._certainly_over(one):
                pairs.setdefault((one.file.sha256, one.backend), one)
        for number, (pair, one) in enumerate(pairs.items()):
            self.progress(f"compare answers: {one.file.path.name} on {one.backend}", number, len(pairs))
            found = self.measurer.quality(one.file, one.backend)
            if isinstance(found, Quality):
                self.qualities[pair] = found
            else:
                same = [other for other in trials if (other.file.sha256, other.backend) == pair]
                self.outcomes |= dict.fromkeys(same, found.reason)

    def _keeps_limits(self, trial: Trial) -> bool:
        if trial not in self.speeds:
            return False
        quality = self.quality_of(trial)
        if quality is None or quality.is_broken:
            self.outcomes[trial] = "gives NaN or infinite values" if quality else "its answers were not compared"
            return False
        missed = self.limits_missed(trial)
        if missed:
            self.outcomes[trial] = f"misses {' and '.join(f'--{name}' for name in missed)}"
        return not missed

    def _not_slower(self, running: list[Trial]) -> list[Trial]:
        if not running:
            return []
        best = max(running, key=self._low)
        slower = [one for one in running if self.speeds[one].speed.high < self._low(best)]
        return self._drop(running, dict.fromkeys(slower, f"slower than {best}"))

    def _fastest(self, running: list[Trial]) -> list[Trial]:
        ranked = sorted(running, key=self._median, reverse=True)
        return self._drop(ranked, dict.fromkeys(ranked[GROUP_SIZE:], f"{GROUP_SIZE} others were faster"))

    def _challenged(self, finalists: list[Trial], candidates: Sequence[Trial]) -> list[Trial]:
        """Time at length whatever was dropped for its speed but is now the fastest, or would be chosen, and add it."""
        for _ in range(_MAX_CHALLENGES):
            finalists = [one for one in finalists if one in self.speeds]
            fastest = max(map(self._median, finalists), default=math.inf)
            sound = [one for one in candidates if self._is_sound(one)]
            best = self._best(sound) if finalists and sound else None
            others = (one for one in sound if one not in finalists and (one == best or self._median(one) > fastest))
            challengers = sorted(others, key=self._median, reverse=True)
            if not challengers:
                break
            self._time(challengers[:GROUP_SIZE], BUDGETS[2], "last round")
            finalists += challengers[:GROUP_SIZE]
        return finalists

    def _is_sound(self, trial: Trial) -> bool:
        quality = self.quality_of(trial)
        is_known = trial in self.speeds and quality is not None and not quality.is_broken
        return is_known and not self.limits_missed(trial)

    def _choose(self, eligible: list[Trial]) -> Trial | None:
        if not eligible:
            return None
        chosen = self._best(eligible)
        for one in eligible:
            speeds = self._merits(one).span, self._merits(chosen).span
            ratio = f"{self._median(one) / self._median(chosen):.2f} x as fast as {chosen}"
            self.outcomes[one] = f"as fast as {chosen} (95% intervals overlap)" if overlap(*speeds) else ratio
        self.outcomes[chosen] = CHOSEN
        return chosen

    def _best(self, trials: Sequence[Trial]) -> Trial:
        return trials[choose([self._merits(one) for one in trials])]

    def _merits(self, trial: Trial) -> ModelMerits:
        quality, speed = self.quality_of(trial), self.speeds[trial]
        score = quality.score if quality is not None else -math.inf
        span = (speed.speed.low, speed.speed.high)
        return ModelMerits(speed.speed.median, score, trial.file.size_bytes, speed.peak_memory_bytes, span)

    def _median(self, trial: Trial) -> float:
        return self.speeds[trial].speed.median

    def _low(self, trial: Trial) -> float:
        return self.speeds[trial].speed.low

"""Race models against each other: turns in alternating order, ratios of neighbouring turns, an interval around each.

The speed of a shared machine drifts by tens of per cent within minutes, so no two times are compared that were not
taken side by side. A ratio is the median over rounds of the two contenders' median calls in that round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from densenet_deploy.bench.contender import Contender, Process, Turn
from densenet_deploy.options import require_range

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Percentile bootstrap (Efron 1979) of the median of `values`, from 2000 seeded resamples."""
        resampled = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values)))
        tail = 50 * (1 - _CONFIDENCE)
        low, high = np.percentile(np.median(resampled, axis=1), (tail, 100 - tail))
        return cls(float(np.median(values)), float(low), float(high))


@dataclass(frozen=True)
class RaceResult:
    """The turns of each contender by name, one a round, and where each really ran."""

    turns: Mapping[str, tuple[Turn, ...]]
    placements: Mapping[str, str]

    def latency_ms(self, name: str) -> float:
        """Return the median over rounds of the median call of `name`, in milliseconds."""
        return float(np.median([turn.median for turn in self.turns[name]])) * 1e3

    def speedup(self, name: str, over: str) -> Interval:
        """Return how many times as fast `name` ran as `over`, from the rounds' ratios."""
        pairs = zip(self.turns[over], self.turns[name], strict=True)
        return Interval.of([slow.median / fast.median for slow, fast in pairs])


def race(contenders: Mapping[str, Contender], *, rounds: int = 5, turn_seconds: float = 0.25) -> RaceResult:
    """Time `contenders`, each in a process of its own, in `rounds` of one turn each.

    The order is reversed from round to round; a first round, in which clocks and caches settle, does not count.

    Raises:
        DensenetDeployError: if a model cannot be opened or run.
    """
    require_range("rounds", rounds, 1, 10_000)
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(contender)) for name, contender in contenders.items()}
        turns: dict[str, list[Turn]] = {name: [] for name in processes}
        names = list(processes)
        placements = {name: process.placement for name, process in processes.items()}  # all are loaded now
        for process in processes.values():
            process.turn(turn_seconds)
        for _ in range(rounds):
            for name in names:
                turns[name].append(processes[name].turn(turn_seconds))
            names.reverse()
    return RaceResult({name: tuple(taken) for name, taken in turns.items()}, placements)

"""Race models against each other: turns in alternating order, ratios of neighbouring turns, an interval around each.

The speed of a shared machine drifts by tens of per cent within minutes, so no two times are compared that were not
taken side by side. A ratio is the median over rounds of the two contenders' median calls in that round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np

from densenet_deploy.bench.contender import Contender, Opening, Process
from densenet_deploy.bench.scenarios import Turn
from densenet_deploy.options import require_range

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95
_STEADY_ROUNDS: Final = 3
_STEADY_SPREAD: Final = 1.05  # slowest over fastest of those rounds' medians


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


class Racer(Protocol):
    """Whoever takes turns: a `Process`, say."""

    @property
    def opening(self) -> Opening: ...
    def turn(self, seconds: float) -> Turn: ...


@dataclass(frozen=True)
class RaceResult:
    """The turns of each contender by name, one a round, and how each came up.

    `warm_up_rounds` came before and do not count; `unsteady` names whose times had not settled when they were over.
    """

    turns: Mapping[str, tuple[Turn, ...]]
    openings: Mapping[str, Opening]
    warm_up_rounds: int = 1
    unsteady: tuple[str, ...] = ()

    @property
    def placements(self) -> dict[str, str]:
        """Where each really ran."""
        return {name: str(opening.placement) for name, opening in self.openings.items()}

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
        return race_loaded(processes, rounds=rounds, turn_seconds=turn_seconds)


def race_loaded(
    racers: Mapping[str, Racer], *, rounds: int, turn_seconds: float, most_warm_up_rounds: int = 1
) -> RaceResult:
    """Time racers that the caller owns and ends; rounds of warm-up end when the times of all are steady.

    Steady means that the medians of the last three rounds lie within 5 %. `race` makes do with one round.

    Raises:
        DensenetDeployError: if a model cannot be opened or run.
    """
    openings = {name: racer.opening for name, racer in racers.items()}  # all are loaded now
    settling: list[dict[str, Turn]] = []
    while len(settling) < most_warm_up_rounds and not _steady(settling):
        settling.append({name: racer.turn(turn_seconds) for name, racer in racers.items()})
    turns: dict[str, list[Turn]] = {name: [] for name in racers}
    names = list(racers)
    for _ in range(rounds):
        for name in names:
            turns[name].append(racers[name].turn(turn_seconds))
        names.reverse()
    unsteady = tuple(name for name in racers if not _steady([{name: turn[name]} for turn in settling]))
    return RaceResult({name: tuple(taken) for name, taken in turns.items()}, openings, len(settling), unsteady)


def _steady(rounds: Sequence[Mapping[str, Turn]]) -> bool:
    """Whether every contender's medians of the last rounds are close; too few rounds cannot tell."""
    last = rounds[-_STEADY_ROUNDS:]
    if len(last) < _STEADY_ROUNDS:
        return False
    medians = [[turns[name].median for turns in last] for name in last[0]]
    return all(max(times) <= min(times) * _STEADY_SPREAD for times in medians)

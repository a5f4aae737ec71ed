"""Time candidates in rounds: in each, every candidate runs once, so that a drift of the machine affects all of them.

The speed of a shared machine drifts by tens of percent within minutes, so times that were not taken side by side are
not compared. A ratio is the median over rounds of the two candidates' median calls in that round.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self

import numpy as np

from densenet_deploy.bench.candidate import Candidate, CandidateWorker, Opening
from densenet_deploy.bench.scenarios import RoundTiming
from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.options import require_range

_RESAMPLES: Final = 2000
_TAILS: Final = (2.5, 97.5)  # percent: a 95 % interval
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
        """Percentile bootstrap (Efron 1979) of the median of `values`, from 2000 seeded resamples.

        >>> Interval.of([5.0, 5.0, 5.0])
        Interval(median=5.0, low=5.0, high=5.0)
        """
        low, high = np.percentile(_resampled_medians(np.random.default_rng(0), values), _TAILS)
        return cls(float(np.median(values)), float(low), float(high))

    @classmethod
    def of_ratio(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Self:
        """Return the ratio of two medians of unpaired values: each side is resampled independently.

        >>> Interval.of_ratio([4.0, 4.0], [2.0, 2.0]).median
        2.0
        """
        rng = np.random.default_rng(0)
        ratios = _resampled_medians(rng, numerator) / _resampled_medians(rng, denominator)
        low, high = np.percentile(ratios, _TAILS)
        return cls(float(np.median(numerator) / np.median(denominator)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _resampled_medians(rng: np.random.Generator, values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(np.median(rng.choice(values, (_RESAMPLES, len(values))), axis=1), np.float64)


class Worker(Protocol):
    """What can be timed in rounds: a `CandidateWorker`, for example."""

    @property
    def opening(self) -> Opening: ...
    def measure(self, seconds: float) -> RoundTiming: ...


@dataclass(frozen=True)
class RoundResults:
    """The timings of each candidate by name, one per round, and how each was opened.

    `warm_up_rounds` came before and do not count. `unsteady` names the candidates that had not settled by then, and
    `failures` those that could not be opened or run, which have no timings.
    """

    timings: Mapping[str, tuple[RoundTiming, ...]]
    openings: Mapping[str, Opening]
    warm_up_rounds: int = 1
    unsteady: tuple[str, ...] = ()
    failures: Mapping[str, DensenetDeployError] = field(default_factory=dict)

    @property
    def placements(self) -> dict[str, str]:
        """Where each candidate ran."""
        return {name: str(opening.placement) for name, opening in self.openings.items()}

    def latency_ms(self, name: str) -> float:
        """Return the median over rounds of the median call of `name`, in milliseconds."""
        return float(np.median([timing.median for timing in self.timings[name]])) * 1e3

    def speedup(self, name: str, over: str) -> Interval:
        """Return how many times as fast `name` ran as `over`, from the ratios of each round in which both ran."""
        pairs = zip(self.timings[over], self.timings[name], strict=False)  # either may have been left out of the last
        return Interval.of([slow.median / fast.median for slow, fast in pairs])


Left = Callable[[RoundResults], Collection[str]]
"""Is asked after each round for the names of those to time in the next one; the last round is before none are left.

Who is left out once stays out.
"""


def _everyone(found: RoundResults) -> Collection[str]:
    return found.timings


def compare_speed(
    candidates: Mapping[str, Candidate] | Iterable[tuple[str, Candidate]],
    *,
    rounds: int = 5,
    seconds_per_round: float = 0.25,
    left: Left = _everyone,
) -> RoundResults:
    """Time `candidates`, by name, each in its own process, in at most `rounds` rounds after one of warm-up.

    Of an iterable, each process starts as soon as its candidate is there, and loads it while the next one is made.

    >>> candidates = {"fp32": Candidate(Path("a.onnx")), "int8": Candidate(Path("a.int8.onnx"))}     # doctest: +SKIP
    >>> compare_speed(candidates).speedup("int8", over="fp32")                                         # doctest: +SKIP
    Interval(median=2.61, low=2.58, high=2.65)

    Raises:
        DensenetDeployError: if a model cannot be opened or run.
    """
    require_range("rounds", rounds, 1, 10_000)
    with contextlib.ExitStack() as stack:
        named = candidates.items() if isinstance(candidates, Mapping) else candidates
        workers = {name: stack.enter_context(CandidateWorker(one)) for name, one in named}
        results = measure_rounds(
            workers,
            rounds=rounds,
            seconds_per_round=seconds_per_round,
            left=lambda found: () if found.failures else left(found),
        )
        for worker in workers.values():
            worker.kill()  # all at the same time: to end by themselves takes each of them a while
        for failure in results.failures.values():
            raise failure
        return results


def measure_rounds(
    workers: Mapping[str, Worker],
    *,
    rounds: int,
    seconds_per_round: float,
    max_warm_up_rounds: int = 1,
    left: Left = _everyone,
) -> RoundResults:
    """Time workers that the caller owns and closes; the order is reversed from round to round.

    There are `rounds` rounds, or fewer, for all or some of the workers, as `left` says after each.

    Warm-up ends once the medians of the last three rounds of every worker lie within 5 %, or after
    `max_warm_up_rounds`. A worker that fails is left out of the remaining rounds and is not among the results.
    """
    openings: dict[str, Opening] = {}
    failures: dict[str, DensenetDeployError] = {}
    warm_up: dict[str, list[RoundTiming]] = {name: [] for name in workers}
    timings: dict[str, list[RoundTiming]] = {name: [] for name in workers}

    def run_round(names: Iterable[str], into: dict[str, list[RoundTiming]]) -> None:
        for name in names:
            if name not in failures:
                with _recorded(failures, name):
                    into[name].append(workers[name].measure(seconds_per_round))

    for name, worker in workers.items():
        with _recorded(failures, name):
            openings[name] = worker.opening
    warm_up_rounds = 0
    while warm_up_rounds < max_warm_up_rounds and not all(_is_steady(warm_up[n]) for n in workers if n not in failures):
        run_round(workers, warm_up)
        warm_up_rounds += 1
    results = functools.partial(_results, timings, openings, warm_up, failures)
    remaining = list(workers)
    for number in range(rounds):
        run_round(remaining if number % 2 == 0 else reversed(remaining), timings)
        wanted = left(results())
        remaining = [name for name in remaining if name in wanted]
        if not remaining:
            break
    return results()


def _results(
    timings: Mapping[str, Sequence[RoundTiming]],
    openings: Mapping[str, Opening],
    warm_up: Mapping[str, Sequence[RoundTiming]],
    failures: Mapping[str, DensenetDeployError],
) -> RoundResults:
    """The results so far of the workers that have not failed."""
    measured = [name for name in timings if name not in failures]
    return RoundResults(
        timings={name: tuple(timings[name]) for name in measured},
        openings={name: openings[name] for name in measured},
        warm_up_rounds=max(map(len, warm_up.values()), default=0),
        unsteady=tuple(name for name in measured if not _is_steady(warm_up[name])),
        failures=dict(failures),
    )


@contextlib.contextmanager
def _recorded(failures: dict[str, DensenetDeployError], name: str) -> Iterator[None]:
    try:
        yield
    except DensenetDeployError as exc:
        failures[name] = exc


def _is_steady(timings: Sequence[RoundTiming]) -> bool:
    """Whether the medians of the last rounds are close; False if there are too few rounds."""
    medians = [timing.median for timing in timings[-_STEADY_ROUNDS:]]
    return len(medians) == _STEADY_ROUNDS and max(medians) <= min(medians) * _STEADY_SPREAD

"""Today's figures against those of an earlier run: ratios with intervals, and what they allow to say.

The rounds of two runs are no pairs, so both sides are resampled on their own. A machine that drifted in between shifts
all rounds of a run together, which no interval from within the runs can show: what has to be certain is raced in one
run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import DataError

_RESAMPLES: Final = 2000
_KEYS: Final = ("backend", "device", "batch", "threads", "streams", "scenario")
_FIX: Final = "give a file that `benchmark -o FILE.json` wrote"

Key = tuple[object, ...]


@dataclass(frozen=True)
class Before:
    """What an earlier run says of one contender: its rounds' medians in milliseconds, and the hash of its file."""

    rounds_ms: tuple[float, ...]
    sha256: str


@dataclass(frozen=True)
class EarlierRun:
    """The figures of an earlier run, by contender, and the processor they belong to."""

    path: Path
    figures: Mapping[Key, Before]
    cpu: str

    @classmethod
    def read(cls, path: Path) -> EarlierRun:
        """Read the JSON of `benchmark`.

        Raises:
            InputError: if there is no such file.
            DataError: if it is not what `benchmark` writes.
        """
        with os_errors_about(path):
            data = path.read_bytes()
        try:
            facts = json.loads(data)
            figures = {key_of(row): _before(row) for row in facts["results"]}
            return cls(path, figures, str(facts["machine"]["cpu"]))
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise DataError(path, "is not the JSON of a benchmark", _FIX) from exc


def key_of(row: Mapping[str, Any]) -> Key:
    """Return what makes a result comparable with another: its file's name, and how and where it was run."""
    fps = row["camera"]["fps"] if row["camera"] else None
    return (PurePath(row["model"]).name, fps, *(row[name] for name in _KEYS))


def speedup_since(before: Sequence[float], now: Sequence[float]) -> Interval:
    """Return how many times as fast `now` is as `before`: the ratio of medians, its 95 % bootstrap interval around it.

    >>> speedup_since([4.0, 4.0], [2.0, 2.0]).median
    2.0
    """
    rng = np.random.default_rng(0)
    ratios = _resampled_medians(rng, before) / _resampled_medians(rng, now)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(float(np.median(before) / np.median(now)), float(low), float(high))


def verdict(speedup: Interval) -> str:
    """Say what an interval around a speed-up allows to say.

    >>> verdict(Interval(1.1, 0.9, 1.3))
    'no difference'
    """
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "no difference"


def unmatched(earlier: EarlierRun, keys: Iterable[Key]) -> int:
    """Return how many results of the earlier run have no match among `keys`."""
    return len(earlier.figures.keys() - set(keys))


def _resampled_medians(rng: np.random.Generator, values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(np.median(rng.choice(values, (_RESAMPLES, len(values))), axis=1), np.float64)


def _before(row: Mapping[str, Any]) -> Before:
    rounds = row["rounds_ms"]
    if not rounds or not all(0 < value < math.inf for value in rounds):
        raise ValueError("rounds without times")
    return Before(tuple(map(float, rounds)), str(row["sha256"]))

"""Which profile of an engine runs a batch, and in how many portions.

A profile takes batches from its min to its max and is tuned for its opt. A batch that some profile takes runs at once,
in the profile tuned nearest to it. A larger one runs in portions of the largest that fits; a smaller one, or one
between two profiles, is filled up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from densenet_deploy.runtime.engine_facts import BatchProfile


@dataclass(frozen=True)
class Portion:
    """Samples `start` to `start + count` of a batch, run in `profile` with `batch` samples, the last one repeated."""

    profile: int
    start: int
    count: int
    batch: int


@functools.lru_cache  # the batches of one application are few
def portions(total: int, profiles: tuple[BatchProfile, ...]) -> tuple[Portion, ...]:
    """Return the runs that a batch of `total` samples takes.

    >>> portions(10, (BatchProfile(1, 4, 8),))
    (Portion(profile=0, start=0, count=8, batch=8), Portion(profile=0, start=8, count=2, batch=2))
    """
    largest = max(profile.max for profile in profiles)
    found: list[Portion] = []
    start = 0
    while start < total:
        count = min(total - start, largest)
        index, batch = _home_of(count, profiles)
        found.append(Portion(index, start, count, batch))
        start += count
    return tuple(found)


def _home_of(count: int, profiles: tuple[BatchProfile, ...]) -> tuple[int, int]:
    """Return the profile for `count` samples and the batch that it then runs."""
    fitting = [(abs(p.opt - count), index) for index, p in enumerate(profiles) if p.min <= count <= p.max]
    if fitting:
        return min(fitting)[1], count
    batch, index = min((p.min, index) for index, p in enumerate(profiles) if p.min > count)
    return index, batch

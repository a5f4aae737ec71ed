"""The Pareto front: the models that no other beats in both speed and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ParetoPoint:
    """A model's latency in milliseconds, with an interval where known, and its top-1 accuracy, a fraction.

    `published`: the accuracy was published by others, not measured here. `chosen`: `tune` chose this one.
    """

    label: str
    latency_ms: float
    top1: float
    interval_ms: tuple[float, float] | None = None
    published: bool = False
    chosen: bool = False


def pareto_front(points: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Return the points that no other point matches in both and beats in one, the fastest first.

    >>> fast, slow = ParetoPoint("fast", 1.0, 0.7), ParetoPoint("slow", 3.0, 0.8)
    >>> [point.label for point in pareto_front([slow, ParetoPoint("worse", 2.0, 0.6), fast])]
    ['fast', 'slow']
    """
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return tuple(front)


def undominated(costs: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Return the indices of the costs that no other matches in all and undercuts in one; of equal ones the first.

    >>> undominated([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (1.0, 3.0)])
    (0, 1)
    """
    return tuple(
        index
        for index, own in enumerate(costs)
        if not any(
            _undercuts(other, own) or (tuple(other) == tuple(own) and rival < index)
            for rival, other in enumerate(costs)
        )
    )


def _undercuts(costs: Sequence[float], others: Sequence[float]) -> bool:
    pairs = list(zip(costs, others, strict=True))
    return all(own <= other for own, other in pairs) and any(own < other for own, other in pairs)

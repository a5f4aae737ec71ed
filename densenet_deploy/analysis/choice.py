"""Which of several models to ship: the Pareto front, and the one rule that `tune` and `report` follow.

Of the models that may be shipped, those within 2 % of the fastest count as equally fast. Among these the better answers
win, then the smaller file, then less memory (in steps of 16 MiB), then speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EQUALLY_FAST: Final = 0.98
_MEMORY_STEP: Final = 2**24


@dataclass(frozen=True)
class ModelMerits:
    """What the rule weighs.

    Attributes:
        speed: images per second, or any multiple of it that all models share.
        score: how good the answers are, more is better: top-1 or AUROC as a fraction, or SQNR in dB.
        file_bytes: size on disk.
        memory_bytes: peak of the process.
    """

    speed: float
    score: float
    file_bytes: int
    memory_bytes: float


@dataclass(frozen=True)
class ModelChoice:
    """The `index` of the model to ship; `reason` completes the sentence "It is …"."""

    index: int
    reason: str


def choose(models: Sequence[ModelMerits]) -> ModelChoice:
    """Return the model to ship.

    >>> choose([ModelMerits(100.0, 0.9, 30, 0), ModelMerits(99.0, 0.9, 8, 0), ModelMerits(50.0, 1.0, 1, 0)])
    ModelChoice(index=1, reason='within 2 % of the fastest of 3, and its file is smaller')
    """
    fastest = max(range(len(models)), key=lambda index: models[index].speed)
    equally_fast = [index for index, one in enumerate(models) if one.speed >= models[fastest].speed * EQUALLY_FAST]
    index = min(equally_fast, key=lambda index: _rank(models[index]))
    if models[index].speed == models[fastest].speed:
        return ModelChoice(index, f"the fastest of {len(models)}")
    return ModelChoice(
        index, f"within 2 % of the fastest of {len(models)}, and {_merit(models[index], models[fastest])}"
    )


def _rank(one: ModelMerits) -> tuple[float, ...]:
    return (-round(one.score, 3), one.file_bytes, round(one.memory_bytes / _MEMORY_STEP), -one.speed)


def _merit(chosen: ModelMerits, fastest: ModelMerits) -> str:
    """What the chosen model has over the fastest."""
    reasons = ("its answers are better", "its file is smaller", "it needs less memory")
    pairs = zip(reasons, _rank(chosen), _rank(fastest), strict=False)
    return next(reason for reason, own, other in pairs if own < other)


@dataclass(frozen=True)
class Metric:
    """What models of a task are compared by: in `words`; a fraction, of which more is better, or an error in its unit.

    >>> METRICS["auroc"].shown(0.91234), METRICS["mae"].shown(3.14159)
    ('91.23 %', '3.142')
    """

    words: str
    is_error: bool = False

    def shown(self, value: float) -> str:
        """Return `value` as text: a fraction in percent."""
        return f"{value:.4g}" if self.is_error else f"{100 * value:.2f} %"


METRICS: Final = {
    "top1": Metric("top-1 accuracy"),
    "auroc": Metric("mean AUROC of the labels"),
    "mae": Metric("mean absolute error", is_error=True),
}
"""By their key in the JSON of `evaluate`: the main figure of multiclass, multilabel and regression models."""


@dataclass(frozen=True)
class ParetoPoint:
    """A model's latency in milliseconds, with an interval where known, and its `merit`, the value of a metric.

    `published`: the merit was published by others, not measured here. `chosen`: `tune` chose this one.
    """

    label: str
    latency_ms: float
    merit: float
    interval_ms: tuple[float, float] | None = None
    published: bool = False
    chosen: bool = False


def pareto_front(points: Sequence[ParetoPoint], metric: Metric = METRICS["top1"]) -> tuple[ParetoPoint, ...]:
    """Return the points that no other point matches in both and beats in one, the fastest first.

    >>> fast, slow = ParetoPoint("fast", 1.0, 0.7), ParetoPoint("slow", 3.0, 0.8)
    >>> [point.label for point in pareto_front([slow, ParetoPoint("worse", 2.0, 0.6), fast])]
    ['fast', 'slow']
    """
    sign = -1 if metric.is_error else 1
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -sign * point.merit)):
        if not front or sign * point.merit > sign * front[-1].merit:
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

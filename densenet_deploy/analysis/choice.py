"""Which of several models to ship: the Pareto front, and the one rule that `tune` and `report` follow.

Of the models that may be shipped, those whose 95 % interval of the speed overlaps that of the fastest are as fast as
it: the measurement cannot tell them apart. Among these the better answers win, then the smaller file, then less memory
(in steps of 16 MiB), then speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from densenet_deploy.errors import counted
from densenet_deploy.records import Choice

Span = tuple[float, float]
"""A 95 % interval."""

EQUAL_SQNR_DB: Final = 60.0  # a thousandth of the signal: a higher SQNR makes no difference to the answers
_MEMORY_STEP: Final = 2**24


def overlap(one: Span, other: Span) -> bool:
    """Whether two intervals share a value.

    >>> overlap((1.0, 2.0), (2.0, 3.0)), overlap((1.0, 2.0), (2.1, 3.0))
    (True, False)
    """
    return one[0] <= other[1] and other[0] <= one[1]


def place_of(backend: str | None, threads: int | None, batch: int | None = None) -> str:
    """Return how a model ran: what is not known and a batch of one are left out.

    >>> place_of("openvino", 1, 8), place_of("onnxruntime", 2, 1)
    ('openvino, 1 thread, batch 8', 'onnxruntime, 2 threads')
    """
    words = [backend or "", "" if not threads else counted(threads, "thread")]
    return ", ".join(filter(None, [*words, "" if batch in (None, 1) else f"batch {batch}"]))


@dataclass(frozen=True)
class ModelMerits:
    """What the rule weighs.

    Attributes:
        speed: images per second, or any multiple of it that all models share.
        score: how good the answers are, more is better: top-1 or AUROC as a fraction, an error negated, or SQNR in dB.
        file_bytes: size on disk.
        memory_bytes: peak of the process.
        speeds: the 95 % interval of `speed`; None where it is not known, which is taken for exact.
    """

    speed: float
    score: float
    file_bytes: int
    memory_bytes: float
    speeds: Span | None = None

    @property
    def span(self) -> Span:
        """The interval of the speed."""
        return self.speeds or (self.speed, self.speed)


def choose(models: Sequence[ModelMerits]) -> int:
    """Return the index of the model to ship.

    >>> choose([ModelMerits(100.0, 0.9, 30, 0, (95.0, 105.0)), ModelMerits(94.0, 0.9, 8, 0, (90.0, 98.0))])
    1
    """
    fastest = max(models, key=lambda one: one.speed)
    as_fast = [index for index, one in enumerate(models) if overlap(one.span, fastest.span)]
    return min(as_fast, key=lambda index: _rank(models[index]))


def merit(chosen: ModelMerits, other: ModelMerits) -> str:
    """Return what the rule found better about `chosen` than about `other`, which is as fast; empty for nothing.

    >>> merit(ModelMerits(94.0, 0.9, 8, 0), ModelMerits(100.0, 0.9, 30, 0))
    'a smaller file'
    """
    words = ("better answers", "a smaller file", "less memory", "the shorter median")
    pairs = zip(words, _rank(chosen), _rank(other), strict=True)
    found = next(((word, own < others) for word, own, others in pairs if own != others), ("", False))
    return found[0] if found[1] else ""


def _rank(one: ModelMerits) -> tuple[float, ...]:
    return (-round(one.score, 3), one.file_bytes, round(one.memory_bytes / _MEMORY_STEP), -one.speed)


@dataclass(frozen=True)
class Metric:
    """What models of a task are compared by: its `name`, in `words`, and whether it is a fraction shown in percent.

    Of an error less is better; it has the unit of the numbers.

    >>> METRICS["top1"].shown(0.91234), METRICS["auroc"].shown(0.91234), METRICS["mae"].shown(3.14159)
    ('91.23%', '0.9123', '3.142')
    """

    name: str
    words: str
    is_percent: bool = False
    is_error: bool = False

    def shown(self, value: float) -> str:
        """Return `value` as text, as everything shows it: sentences, tables and figures."""
        if self.is_percent:
            return f"{value:.2%}"
        return f"{value:.4g}" if self.is_error else f"{value:.4f}"


METRICS: Final = {
    "top1": Metric("top-1", "top-1 accuracy", is_percent=True),
    "auroc": Metric("AUROC", "mean AUROC of the labels"),
    "mae": Metric("MAE", "mean absolute error", is_error=True),
}
"""By their key in the JSON of `evaluate`: the main figure of multiclass, multilabel and regression models."""


@dataclass(frozen=True)
class Accuracy:
    """The main figure of a model's task: `key` of `METRICS`, and its value.

    >>> str(Accuracy("top1", 0.9))
    'top-1 90.00%'
    """

    key: Annotated[str, Choice(*METRICS)]
    value: float

    @classmethod
    def of(cls, found: object) -> Accuracy | None:
        """Return the one that `found` has a value of, if any: an object with attributes of these names."""
        values = ((key, getattr(found, key, None)) for key in METRICS)
        return next((cls(key, value) for key, value in values if value is not None), None)

    @property
    def metric(self) -> Metric:
        """What it is a value of."""
        return METRICS[self.key]

    @property
    def name(self) -> str:
        """`top-1`, `AUROC` or `MAE`."""
        return self.metric.name

    @property
    def shown(self) -> str:
        """The value as text."""
        return self.metric.shown(self.value)

    @property
    def score(self) -> float:
        """Larger is better."""
        return -self.value if self.metric.is_error else self.value

    def __str__(self) -> str:
        return f"{self.name} {self.shown}"


def score_of(accuracy: Accuracy | None, sqnr_db: float | None) -> float:
    """Return how good answers are, more is better: by their accuracy, else by the SQNR in dB up to `EQUAL_SQNR_DB`.

    >>> score_of(Accuracy("mae", 2.0), 40.0), score_of(None, 136.2)
    (-2.0, 60.0)
    """
    if accuracy is not None:
        return accuracy.score
    return -math.inf if sqnr_db is None else min(sqnr_db, EQUAL_SQNR_DB)


@dataclass(frozen=True)
class ParetoPoint:
    """A model's latency in milliseconds, with an interval where known, and its `merit`, the value of a metric.

    `published`: the merit was published by others, not measured here. `chosen`: `tune` chose this one. `number`: what a
    table beside the figure calls it.
    """

    label: str
    latency_ms: float
    merit: float
    interval_ms: tuple[float, float] | None = None
    published: bool = False
    chosen: bool = False
    number: int | None = None


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


def is_tied(point: ParetoPoint, front: Sequence[ParetoPoint], metric: Metric = METRICS["top1"]) -> bool:
    """Whether a point behind the front is there by noise alone: what is as good and faster has an overlapping interval.

    >>> tied, clear = ParetoPoint("tied", 1.1, 0.8, (1.0, 1.2)), ParetoPoint("clear", 1.4, 0.8, (1.3, 1.5))
    >>> [is_tied(point, [ParetoPoint("first", 1.0, 0.8, (0.9, 1.1))]) for point in (tied, clear)]
    [True, False]
    """
    sign = -1 if metric.is_error else 1
    ahead = [one for one in front if sign * one.merit >= sign * point.merit and one.latency_ms <= point.latency_ms]
    return all(one.merit == point.merit and overlap(_interval(one), _interval(point)) for one in ahead)


def _interval(point: ParetoPoint) -> Span:
    return point.interval_ms or (point.latency_ms, point.latency_ms)


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

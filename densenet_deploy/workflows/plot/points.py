"""Data of figures, read from the JSON of other commands.

Three kinds of entries give points of latency and accuracy: one with both (`tune`), one with a published accuracy
(`inspect --sweep`), and one with latency only (`benchmark`), whose accuracy is that of the report of `evaluate` on the
same model.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from densenet_deploy.analysis.choice import ParetoPoint
from densenet_deploy.errors import DataError, printable
from densenet_deploy.reports import Report

Interval = tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """Statistics of all calls of a benchmark, in milliseconds."""

    p50: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class PublishedTop1:
    """An accuracy that others published, a fraction."""

    top1: float


@dataclass(frozen=True)
class Entry:
    """A model in one of the reports; the fields are their JSON keys."""

    model: str | None = None
    name: str | None = None
    backend: str | None = None
    threads: int | None = None
    batch: int | None = None
    latency_ms: float | Latency | None = None
    rounds_ms: tuple[float, ...] | None = None
    interval_ms: Interval | None = None
    latency_interval_ms: Interval | None = None
    top1: float | None = None
    published: PublishedTop1 | None = None

    @property
    def title(self) -> str:
        return self.model or self.name or ""

    @property
    def median_ms(self) -> float | None:
        """The median of the rounds' medians, to which the interval belongs."""
        if self.rounds_ms:
            return statistics.median(self.rounds_ms)
        if isinstance(self.latency_ms, Latency):
            return self.latency_ms.mean if self.latency_ms.p50 is None else self.latency_ms.p50
        return self.latency_ms

    def points(self, accuracies: Mapping[str, float]) -> Iterator[ParetoPoint]:
        """Yield the point of the entry, if both latency and accuracy are known."""
        measured = accuracies.get(self.title) if self.top1 is None else self.top1
        top1 = self.published.top1 if measured is None and self.published is not None else measured
        if top1 is not None and self.median_ms:
            label = point_label(self.title, self.backend, self.threads, self.batch)
            interval = self.latency_interval_ms or self.interval_ms
            yield ParetoPoint(label, self.median_ms, top1, interval, published=measured is None)


@dataclass(frozen=True, kw_only=True)
class PointsReport(Report):
    """The report of any command that measures latency or accuracy."""

    kind: ClassVar[str] = "benchmark, evaluate, inspect --sweep or tune"

    model: str | None = None
    top1: float | None = None
    results: tuple[Entry, ...] = ()
    points: tuple[Entry, ...] = ()
    pareto: tuple[Entry, ...] = ()


def pareto_points(paths: Sequence[Path]) -> tuple[ParetoPoint, ...]:
    """Return a point for every entry of the reports that has both latency and accuracy.

    Raises:
        DataError: if a file does not hold such a report, or no entry has both.
    """
    reports = [PointsReport.read(path) for path in paths]
    accuracies = {one.model: one.top1 for one in reports if one.model is not None and one.top1 is not None}
    entries = (entry for one in reports for entry in (*one.results, *one.points, *one.pareto))
    points = tuple(point for entry in entries for point in entry.points(accuracies))
    if not points:
        why = "hold no model with both latency_ms and top1"
        fix = "give the JSON of benchmark with that of evaluate for the same models, of inspect --sweep, or of tune"
        raise DataError(", ".join(map(str, paths)), why, fix)
    return points


def point_label(model: str, backend: str | None, threads: int | None, batch: int | None) -> str:
    """Return the model without folder and suffix, its backend and threads, and its batch where that is not 1.

    >>> point_label("models/a.onnx", "openvino", 1, 8)
    'a, openvino, 1 thread, batch 8'
    """
    words = [printable(model.rpartition("/")[2].removesuffix(".onnx"), 80), printable(backend or "", 20)]
    words += [] if not threads else ["1 thread" if threads == 1 else f"{threads} threads"]
    words += [f"batch {batch}"] if batch not in (None, 1) else []
    return ", ".join(filter(None, words))

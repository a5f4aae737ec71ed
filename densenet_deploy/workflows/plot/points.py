"""Data of figures, read from the JSON of other commands.

Three kinds of entries give points of latency and accuracy: one with both (`tune`), one with a published accuracy
(`inspect --sweep`), and one with latency only (`benchmark`), whose accuracy is that of the report of `evaluate` on the
same model. The accuracy is the main figure of the task: top-1, the mean AUROC, or the mean absolute error.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from densenet_deploy.analysis.choice import METRICS, Accuracy, Metric, ParetoPoint, place_of
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
    auroc: float | None = None
    mae: float | None = None
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

    def points(self, merits: Mapping[str, Accuracy]) -> Iterator[tuple[str, ParetoPoint]]:
        """Yield the key of the metric and the point of the entry, if both latency and merit are known."""
        measured = Accuracy.of(self) or merits.get(self.title)
        merit = Accuracy("top1", self.published.top1) if measured is None and self.published is not None else measured
        if merit is not None and self.median_ms:
            label = point_label(self.title, self.backend, self.threads, self.batch)
            interval = self.latency_interval_ms or self.interval_ms
            yield merit.key, ParetoPoint(label, self.median_ms, merit.value, interval, published=measured is None)


@dataclass(frozen=True, kw_only=True)
class PointsReport(Report):
    """The report of any command that measures latency or accuracy."""

    kind: ClassVar[str] = "benchmark, evaluate, inspect --sweep or tune"

    model: str | None = None
    top1: float | None = None
    auroc: float | None = None
    mae: float | None = None
    results: tuple[Entry, ...] = ()
    points: tuple[Entry, ...] = ()
    pareto: tuple[Entry, ...] = ()


def pareto_points(paths: Sequence[Path]) -> tuple[Metric, tuple[ParetoPoint, ...]]:
    """Return a point for every entry of the reports that has both latency and accuracy, and what that is.

    Raises:
        DataError: if a file does not hold such a report, no entry has both, or models of several tasks are among them.
    """
    reports, names = [PointsReport.read(path) for path in paths], ", ".join(map(str, paths))
    merits = {one.model: merit for one in reports if one.model is not None and (merit := Accuracy.of(one)) is not None}
    entries = (entry for one in reports for entry in (*one.results, *one.points, *one.pareto))
    found = [pair for entry in entries for pair in entry.points(merits)]
    if not found:
        why = "hold no model with both latency_ms and an accuracy (top1, auroc or mae)"
        fix = "give the JSON of benchmark with that of evaluate for the same models, of inspect --sweep, or of tune"
        raise DataError(names, why, fix)
    keys = list(dict.fromkeys(key for key, _ in found))
    if len(keys) > 1:
        raise DataError(names, f"hold models that are compared by {' and by '.join(keys)}", "draw one task at a time")
    return METRICS[keys[0]], tuple(point for _, point in found)


def point_label(model: str, backend: str | None, threads: int | None, batch: int | None) -> str:
    """Return the model without folder and suffix, its backend and threads, and its batch where that is not 1.

    >>> point_label("models/a.onnx", "openvino", 1, 8)
    'a, openvino, 1 thread, batch 8'
    """
    name = printable(model.rpartition("/")[2].removesuffix(".onnx"), 80)
    return ", ".join(filter(None, [name, place_of(printable(backend or "", 20), threads, batch)]))

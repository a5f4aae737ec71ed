"""Latency and accuracy of models, read from the JSON of other commands.

Three kinds of entries are understood: one with latency and accuracy (`tune`), one with latency and a published
accuracy (`inspect --sweep`), and one with latency only (`benchmark`), whose accuracy is that of the report of
`evaluate` on the same model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.pareto import ParetoPoint
from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import DataError

Facts = Mapping[str, object]

_LISTS: Final = ("results", "points", "pareto")


def pareto_points(paths: Sequence[Path]) -> tuple[ParetoPoint, ...]:
    """Return a point for every entry of the reports that has both latency and accuracy.

    Raises:
        DataError: if a file is no JSON object, or no entry has both.
    """
    reports = [read_report(path) for path in paths]
    accuracies = {str(report["model"]): report["top1"] for report in reports if "model" in report and "top1" in report}
    points = [point for report in reports for entry in _entries(report) for point in _point(entry, accuracies)]
    if not points:
        why = "hold no model with both latency_ms and top1"
        fix = "give benchmark's JSON with evaluate's of the same models, inspect --sweep's, or tune's"
        raise DataError(", ".join(map(str, paths)), why, fix)
    return tuple(points)


def read_report(path: Path) -> Facts:
    """Return what a command printed with `--json`.

    Raises:
        DataError: if the file holds no JSON object.
    """
    with os_errors_about(path):
        text = path.read_bytes()
    try:
        report = json.loads(text)
    except ValueError as exc:
        raise DataError(path, "is no JSON", "give what a command printed with --json") from exc
    if not isinstance(report, dict):
        raise DataError(path, "is no JSON object", "give what a command printed with --json")
    return report


def _entries(report: Facts) -> Iterator[Facts]:
    for name in _LISTS:
        entries = report.get(name)
        yield from (entry for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else ()


def _point(entry: Facts, accuracies: Mapping[str, object]) -> Iterator[ParetoPoint]:
    model = str(entry.get("model", entry.get("name", "")))
    published = entry.get("published")
    measured = _number(entry.get("top1", accuracies.get(model)))
    top1 = measured if measured is not None else _number(published.get("top1") if isinstance(published, dict) else None)
    latency = _latency(entry)
    if top1 is not None and latency is not None and latency > 0:
        yield ParetoPoint(_label(entry, model), latency, top1, _interval(entry), published=measured is None)


def _latency(entry: Facts) -> float | None:
    latency = entry.get("latency_ms")
    if isinstance(latency, dict):
        return _number(latency.get("p50", latency.get("mean")))
    return _number(latency)


def _interval(entry: Facts) -> tuple[float, float] | None:
    given = entry.get("latency_interval_ms", entry.get("interval_ms"))
    numbers = [_number(value) for value in given] if isinstance(given, list) else []
    match numbers:
        case [float(low), float(high)]:
            return low, high
    return None


def _label(entry: Facts, model: str) -> str:
    """The model without folder and suffix, its backend and threads, and its batch where that is not 1."""
    words = [Path(model).name.removesuffix(".onnx"), str(entry.get("backend") or "")]
    if (threads := entry.get("threads")) is not None:
        words.append("1 thread" if threads == 1 else f"{threads} threads")
    if entry.get("batch", 1) != 1:
        words.append(f"batch {entry['batch']}")
    return ", ".join(word for word in words if word)


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]

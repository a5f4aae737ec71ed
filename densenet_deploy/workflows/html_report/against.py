"""Two reports side by side: what was decided then and now, and every candidate that both measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from densenet_deploy.bench.machine import Machine
from densenet_deploy.reports import Cell, Table, mib, number_cell, table_of, text_cell, time_cell
from densenet_deploy.workflows.decision import MeasuredCandidate, answers_in_words, size_in_words, speed_in_words
from densenet_deploy.workflows.html_report.decide import Advice
from densenet_deploy.workflows.html_report.load import Earlier
from densenet_deploy.workflows.html_report.page import Block, Section, remarks

Pair = tuple[MeasuredCandidate, MeasuredCandidate]

_DECISION: Final[Mapping[str, Callable[[MeasuredCandidate], str]]] = {
    "file": lambda one: one.model,
    "runs on": lambda one: one.place,
    "precision": lambda one: one.precision,
    "ms per call [95%]": lambda one: one.time,
    "accuracy": lambda one: "" if one.accuracy is None else f"{one.accuracy} of {one.labelled} images",
    "file size": lambda one: one.size,
    "memory": lambda one: "" if not one.memory_bytes else mib(one.memory_bytes),
}


def against_section(advice: Advice, earlier: Earlier | None) -> list[Section]:
    """What changed since `earlier`; nothing without one."""
    if earlier is None:
        return []
    before, now = earlier.decision.chosen, advice.decision.chosen
    lead = f"{earlier.name} before, this page now. Times of different runs are compared by their 95% intervals alone."
    blocks: list[Block] = [*remarks(_machines(earlier.machine, advice.machine))]
    if before is not None and now is not None:
        blocks.append(_choices(earlier.name, before, now))
    known = {one.key: one for one in earlier.decision.candidates}
    pairs = [(known[one.key], one) for one in advice.decision.candidates if one.key in known]
    blocks += [_candidates(pairs)] if pairs else [*remarks(["No candidate was measured in both."])]
    return [Section("against", f"Compared with {earlier.name}", lead, blocks)]


def _choices(name: str, before: MeasuredCandidate, now: MeasuredCandidate) -> Table:
    changes = {
        "ms per call [95%]": speed_in_words(now, before) if now.batch == before.batch else "another batch",
        "accuracy": _accuracy_change(now, before),
        "file size": size_in_words(now, before),
    }
    columns: dict[str, Callable[[str], Cell]] = {
        "to ship": lambda fact: text_cell(fact),
        name: lambda fact: text_cell(_DECISION[fact](before)),
        "now": lambda fact: text_cell(_DECISION[fact](now)),
        "change": lambda fact: text_cell(changes.get(fact, "")),
    }
    return table_of("What to ship, then and now", list(_DECISION), columns)


def _accuracy_change(now: MeasuredCandidate, before: MeasuredCandidate) -> str:
    if not now.accuracy or not before.accuracy:
        return ""
    is_known = None not in (now.images, before.images)
    return "other images" if is_known and now.images != before.images else answers_in_words(now, before)


def _candidates(pairs: list[Pair]) -> Table:
    longest = max((one.interval_ms or (0.0, one.latency_ms))[1] for pair in pairs for one in pair)
    columns: dict[str, Callable[[Pair], Cell]] = {
        "file": lambda pair: text_cell(pair[1].model),
        "runs on": lambda pair: text_cell(pair[1].place),
        "ms before": lambda pair: time_cell(pair[0].latency_ms, pair[0].interval_ms, longest),
        "ms now": lambda pair: time_cell(pair[1].latency_ms, pair[1].interval_ms, longest),
        "speed": lambda pair: text_cell(speed_in_words(pair[1], pair[0])),
        "accuracy before": lambda pair: _accuracy(pair[0]),
        "accuracy now": lambda pair: _accuracy(pair[1]),
        "size": lambda pair: text_cell(size_in_words(pair[1], pair[0])),
    }
    return table_of("Candidates that both measured", pairs, columns).without_empty_columns()


def _accuracy(one: MeasuredCandidate) -> Cell:
    return number_cell(None) if one.accuracy is None else Cell(one.accuracy.shown, one.accuracy.value)


def _machines(before: Machine | None, now: Machine | None) -> list[str]:
    """What makes times of the two runs differ without any change of the models."""
    if before is None or now is None:
        return ["The machine of one of them is not recorded: the times may be of different machines."]
    packages = sorted(before.versions.keys() | now.versions.keys())
    software = [("system", before.system, now.system), ("python", before.python, now.python)]
    software += [(name, before.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in packages]
    words = before.other_hardware(now) + [f"{name} {old}, now {new}" for name, old, new in software if old != new]
    return [f"Not measured under the same conditions: {'; '.join(words)}."] if words else []

"""What a tuning found: the candidates that no other beats, the one to ship and why, and what that was measured on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.pareto import undominated
from densenet_deploy.bench.machine import Machine
from densenet_deploy.errors import GateError, printable
from densenet_deploy.workflows.tune.results import Limits, Tried

_MIB: Final = 2**20
_EQUAL: Final = 1.02  # figures nearer to each other than that count as equal on the front
_HEADER: Final = ("", "file", "backend", "threads", "batch", "ms [95 %]", "images/s", "x reference", "MiB", "file MiB",
                  "top-1", "SQNR dB", "drop")  # fmt: skip


@dataclass(frozen=True)
class TuneReport:
    """All candidates with what was measured, and what follows from it.

    Attributes:
        reference: what speeds are relative to, in words.
        compare_across_models: whether answers of different models are measured alike, by labels.
        reused, done: steps that were remembered, and that were done now.
        state: the file that remembers them.
    """

    tried: tuple[Tried, ...]
    limits: Limits
    goal: str
    reference: str
    machine: Machine
    seconds: float
    reused: int
    done: int
    state: Path
    remarks: tuple[str, ...] = ()
    compare_across_models: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.remarks, *self.machine.notes)

    @property
    def chosen(self) -> Tried | None:
        """The candidate to ship; None where none keeps the limits."""
        return next((one for one in self.tried if one.fate == "chosen"), None)

    @functools.cached_property
    def pareto(self) -> tuple[Tried, ...]:
        """Candidates that no other matches in latency, throughput, answers, memory and file size and beats in one.

        Figures within 2 % count as equal. Answers are compared within a model, and across models where labels are.
        """
        known = [one for one in self.tried if one.quality is not None and not one.quality.is_broken and one.lap]
        groups: dict[str, list[Tried]] = {}
        for one in known:
            groups.setdefault("" if self.compare_across_models else one.candidate.file.base, []).append(one)
        front = [group[index] for group in groups.values() for index in undominated([*map(_costs, group)])]
        return tuple(sorted(front, key=lambda one: one.lap.latency_ms if one.lap else math.inf))

    @property
    def reason(self) -> str:
        """Why the choice is the choice, or which limits cannot be kept."""
        return _reason(self) if self.chosen is not None else "; ".join(_unkept(self.tried, self.limits))

    @property
    def failure(self) -> GateError | None:
        """What to raise where nothing keeps the limits."""
        if self.chosen is not None:
            return None
        return GateError("tune", f"nothing that was tried can be shipped: {self.reason}", "ask for less, or try more")

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        chosen = self.chosen
        return {
            "chosen": None
            if chosen is None
            else chosen.to_json() | {"reason": self.reason, "command": _command(chosen)},
            "reason": self.reason,
            "pareto": [one.to_json() for one in self.pareto],
            "candidates": [one.to_json() for one in self.tried],
            "limits": self.limits.to_json(),
            "goal": self.goal,
            "reference": self.reference,
            "machine": dataclasses.asdict(self.machine),
            "seconds": self.seconds,
            "steps": {"remembered": self.reused, "done": self.done},
            "state": str(self.state),
            "dry_run": False,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the front as a table, then what was left out and why, then the choice."""
        front = set(map(id, self.pareto))
        others = [one for one in self.tried if id(one) not in front]
        chosen = self.chosen
        return "\n".join(
            [
                "Pareto front",
                *_table([_row(one) for one in self.pareto]),
                "",
                *(f"left out    {printable(one.candidate)}: {printable(one.fate)}" for one in others),
                f"steps       {self.reused} remembered, {self.done} done in {self.seconds:.0f} s",
                f"machine     {self.machine}",
                *([] if chosen is None else [f"chosen      {printable(chosen.candidate.file.path)}"]),
                f"{'reason' if chosen else 'none'}      {'' if chosen else '  '}{self.reason}",
                *([] if chosen is None else [f"again       {_command(chosen)}"]),
            ]
        )


def _costs(one: Tried) -> tuple[float, ...]:
    """Less is better in each: latency of a call, time of an image, memory, file size, answers."""
    assert one.lap is not None
    assert one.quality is not None
    speed = one.lap.speed.median
    figures = (one.candidate.batch / speed, 1 / speed, one.lap.peak_memory_bytes, one.candidate.file.size_bytes)
    score = one.quality.score
    return (*(float(round(math.log(figure, _EQUAL))) for figure in figures), -round(score, 4))


def _reason(report: TuneReport) -> str:
    chosen = report.chosen
    assert chosen is not None
    assert chosen.lap is not None
    kept = [one for one in report.tried if one.lap is not None and one.quality is not None and not one.missed]
    what = "most images a second" if report.goal == "throughput" else "shortest call"
    asked = any(value is not None for value in dataclasses.astuple(report.limits))
    words = [f"the {what} of {len(kept)} candidates{' that keep the limits' if asked else ''}: {_speed(chosen)}"]
    words += _answers(chosen)
    words.append(
        f"{chosen.lap.peak_memory_bytes / _MIB:.0f} MiB, file {chosen.candidate.file.size_bytes / _MIB:.1f} MiB"
    )
    return ", ".join(words)


def _speed(one: Tried) -> str:
    assert one.lap is not None
    speed = one.lap.speed
    interval = f"{speed.median:.2f} x [{speed.low:.2f}, {speed.high:.2f}]"
    return f"{one.lap.latency_ms:.2f} ms a call, {interval} as fast as the reference"


def _answers(one: Tried) -> list[str]:
    quality = one.quality
    if quality is None or one.drop is None:
        return []
    if quality.top1 is not None:
        return [f"top-1 {quality.top1:.2%} on {quality.labelled} images ({one.drop:+.2f} points lost)"]
    return [f"{one.drop:.1f} % of {quality.images} {quality.kind} answered otherwise"]


def _unkept(tried: Sequence[Tried], limits: Limits) -> list[str]:
    """Say of each limit what comes nearest to it, and whether it is the limits together that cannot be kept."""
    run = [one for one in tried if one.lap is not None]
    if not run:
        return ["no candidate runs here"]
    told = []
    if limits.max_latency_ms is not None:
        least = min(one.lap.latency_ms for one in run if one.lap)
        told.append(_against("--max-latency", least, limits.max_latency_ms, "ms", "the fastest takes"))
    if limits.max_memory_bytes is not None:
        least = min(one.lap.peak_memory_bytes for one in run if one.lap) / _MIB
        told.append(_against("--max-memory", least, limits.max_memory_bytes / _MIB, "MiB", "the smallest takes"))
    drops = [one.drop for one in run if one.drop is not None]
    if limits.max_drop is not None and drops:
        told.append(_against("--max-drop", min(drops), limits.max_drop, "points", "the least is"))
    elif limits.max_drop is not None:
        told.append("--max-drop: no candidate's classes could be compared")
    missed = [sentence for sentence in told if "cannot" in sentence or "could" in sentence]
    if missed or not told:
        return missed or ["no candidate gives sound answers"]
    return ["each limit can be kept alone, but no candidate keeps all", *told]


def _against(name: str, found: float, limit: float, unit: str, words: str) -> str:
    verdict = "cannot be kept" if found > limit else "can be kept"
    return f"{name} {limit:g} {verdict} ({words} {found:.4g} {unit})"


def _command(one: Tried) -> str:
    from shlex import quote

    what = one.candidate
    words = f"--backend {what.backend} --threads {what.threads} --batch {what.batch}"
    return f"densenet-deploy benchmark {quote(str(what.file.path))} {words}"


def _row(one: Tried) -> tuple[str, ...]:
    lap, quality, what = one.lap, one.quality, one.candidate
    assert lap is not None
    assert quality is not None
    return (
        "*" if one.fate == "chosen" else "",
        printable(what.file.path.name, 60),
        what.backend,
        str(what.threads),
        str(what.batch),
        f"{lap.latency_ms:.2f} [{lap.low_ms:.2f}, {lap.high_ms:.2f}]",
        f"{what.batch / lap.latency_ms * 1e3:.1f}",
        f"{lap.speed.median:.2f}",
        f"{lap.peak_memory_bytes / _MIB:.0f}",
        f"{what.file.size_bytes / _MIB:.1f}",
        "" if quality.top1 is None else f"{quality.top1:.2%}",
        f"{quality.parity.sqnr_db:.1f}",
        "" if one.drop is None else f"{one.drop:.2f}",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [_HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]

"""What `tune` found, as far as the HTML report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from densenet_deploy.workflows.html_report.inputs import MachineFacts, ParityFacts
from densenet_deploy.workflows.html_report.json_report import JsonReport


@dataclass(frozen=True)
class Trial:
    """A candidate of `tune`: what ran on what, and what was found; None where it was not measured."""

    model: str
    sha256: str
    backend: str
    precision: str
    threads: int | None
    batch: int
    latency_ms: float | None
    interval: tuple[float, float] | None
    memory_bytes: float | None
    top1: float | None
    drop_points: float | None
    parity: ParityFacts | None
    outcome: str
    command: str

    @classmethod
    def of(cls, trial: JsonReport) -> Self:
        """Read one of the candidates."""
        threads, interval, parity = (
            trial.known_number("threads"),
            trial.numbers("interval_ms"),
            trial.known_part("parity"),
        )
        return cls(
            model=trial.text("model"),
            sha256=trial.known_text("sha256"),
            backend=trial.known_text("backend"),
            precision=trial.known_text("precision"),
            threads=None if threads is None else int(threads),
            batch=int(trial.known_number("batch") or 1),
            latency_ms=trial.known_number("latency_ms"),
            interval=(interval[0], interval[1]) if len(interval) == 2 else None,
            memory_bytes=trial.known_number("peak_memory_bytes"),
            top1=trial.known_number("top1"),
            drop_points=trial.known_number("drop_points"),
            parity=None if parity is None else ParityFacts.of("outputs", parity),
            outcome=trial.known_text("outcome"),
            command=trial.known_text("command"),
        )


@dataclass(frozen=True)
class TuneLimits:
    """What `tune` was asked to keep; None where nothing was asked."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_memory_bytes: float | None = None

    @classmethod
    def of(cls, limits: JsonReport) -> Self:
        """Read what `tune` calls `limits`."""
        return cls(*(limits.known_number(key) for key in ("max_drop", "max_latency_ms", "max_memory_bytes")))


@dataclass(frozen=True)
class Tuning:
    """A run of `tune`: the Pareto front, and what to ship and why; None where no candidate kept the limits.

    `tried` are all candidates, `folder` is where their files were written, None where that is not recorded.
    """

    path: Path
    chosen: Trial | None
    reason: str
    pareto: tuple[Trial, ...]
    machine: MachineFacts | None
    notes: tuple[str, ...]
    tried: tuple[Trial, ...] = ()
    limits: TuneLimits = TuneLimits()
    goal: str = ""
    folder: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of `tune`."""
        report = JsonReport.read(path, "tune", "pareto", "chosen")
        if report.facts.get("dry_run") is True:
            raise report.error("it is a dry run, which measured nothing")
        chosen, machine, limits = (report.known_part(key) for key in ("chosen", "machine", "limits"))
        state = report.known_text("state")
        told = [report.known_text("reason")]
        if chosen is not None:
            told += [chosen.known_text("reason"), chosen.known_text("outcome")]
        return cls(
            path=path,
            chosen=None if chosen is None else Trial.of(chosen),
            reason=next(filter(None, told), ""),
            pareto=tuple(map(Trial.of, report.parts("pareto"))),
            machine=None if machine is None else MachineFacts.of(machine),
            notes=report.texts("notes"),
            tried=tuple(map(Trial.of, report.parts("candidates"))),
            limits=TuneLimits() if limits is None else TuneLimits.of(limits),
            goal=report.known_text("goal"),
            folder=Path(state).parent if state else None,
        )

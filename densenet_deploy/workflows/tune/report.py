"""The results of a tuning: the candidates that no other beats, the one to ship and why, and what it was measured on."""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from densenet_deploy.analysis.choice import Accuracy, place_of, score_of, undominated
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import GateError, printable
from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import Report, Table, line
from densenet_deploy.workflows.decision import Decision, MeasuredCandidate
from densenet_deploy.workflows.tune.cache import ResultCache
from densenet_deploy.workflows.tune.candidates import GIVEN, Trial
from densenet_deploy.workflows.tune.search import CHOSEN, GROUP_SIZE, Limits, Search

_MIB: Final = 2**20
_EQUAL: Final = 1.02  # the ratio up to which figures count as equal on the Pareto front


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """All that is known of a candidate.

    Attributes:
        model, bytes, sha256: the file.
        base, form, precision: the FP32 model it was made from, and how.
        backend, threads, batch: how it ran.
        outcome: `chosen`, or why it is not.
        limits_missed: names of limits.
        latency_ms: the median call, with its 95 % interval `interval_ms`; None if it could not run.
        images_per_second: derived from it.
        speedup: images/s over those of the reference.
        device, runs_in: where and in which precision it ran, as the backend reports.
        top1, auroc, mae: the main figure of the model's task on `labelled` images: top-1, the mean AUROC of a
            multilabel model, or the mean absolute error of a regression; None without any, or if it was dropped before.
        parity: with the FP32 model, of the worst output, on the images that `compared_on` describes.
        drop_points: percentage points of that accuracy lost; without labels, of images with another class.
    """

    model: Path
    base: str
    form: str
    precision: str
    backend: str
    threads: int
    batch: int
    bytes: int
    sha256: str
    outcome: str
    limits_missed: tuple[str, ...] = ()
    latency_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    images_per_second: float | None = None
    speedup: Interval | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    runs_in: str | None = None
    top1: float | None = None
    auroc: float | None = None
    mae: float | None = None
    labelled: int = 0
    parity: Parity | None = None
    compared_on: str | None = None
    drop_points: float | None = None

    @classmethod
    def of(cls, trial: Trial, search: Search) -> TrialResult:
        """Return what `search` found out about `trial`."""
        file, speed, quality = trial.file, search.speeds.get(trial), search.quality_of(trial)
        latency = None if speed is None else search.latency_of(trial)
        answers: dict[str, Any] = {}
        if quality is not None:
            answers = {name: getattr(quality, name) for name in ("top1", "auroc", "mae", "labelled", "parity")}
            answers["compared_on"] = f"{quality.images} {quality.kind}"
        return cls(
            model=file.path,
            base=file.base,
            form=file.form,
            precision=file.precision,
            backend=trial.backend,
            threads=trial.threads,
            batch=trial.batch,
            bytes=file.size_bytes,
            sha256=file.sha256,
            outcome=search.outcomes.get(trial, "not timed further"),
            limits_missed=search.limits_missed(trial),
            latency_ms=None if latency is None else latency.median,
            interval_ms=None if latency is None else (latency.low, latency.high),
            images_per_second=None if latency is None else trial.batch / latency.median * 1e3,
            speedup=None if speed is None else speed.speed,
            peak_memory_bytes=None if speed is None else speed.peak_memory_bytes,
            device=None if speed is None else speed.device,
            runs_in=None if speed is None else speed.precision,
            **answers,
            drop_points=search.drop_of(trial),
        )

    def __str__(self) -> str:
        speed = "not timed" if self.latency_ms is None else f"{self.latency_ms:.2f} ms per call"
        return f"{self.title}: {speed}"

    @property
    def title(self) -> str:
        """The file and how it runs."""
        return printable(f"{self.model.name} on {place_of(self.backend, self.threads, self.batch)}")

    @property
    def key(self) -> tuple[object, ...]:
        """What tells a candidate from the others."""
        return self.model, self.backend, self.threads, self.batch

    @property
    def is_sound(self) -> bool:
        """Whether it ran and its answers are finite."""
        return self.latency_ms is not None and self.parity is not None and not self.parity.nonfinite

    @property
    def accuracy(self) -> Accuracy | None:
        """Top-1, AUROC or mean absolute error, if it is known."""
        return Accuracy.of(self)

    def candidate(self, least_batch: int | None) -> MeasuredCandidate:
        """Return what a decision is made on; `least_batch` is the only one that the goal is about, if any."""
        assert self.latency_ms is not None
        parity = self.parity
        is_refused = not self.is_sound or self.limits_missed or (least_batch is not None and self.batch > least_batch)
        return MeasuredCandidate(
            model=self.model.name,
            precision=self.runs_in or self.precision,
            backend=self.backend,
            threads=self.threads,
            batch=self.batch,
            latency_ms=self.latency_ms,
            interval_ms=self.interval_ms,
            file_bytes=self.bytes,
            memory_bytes=self.peak_memory_bytes,
            accuracy=self.accuracy,
            labelled=self.labelled,
            same_class=None if parity is None else parity.top1_agreement,
            compared_on=self.compared_on or "",
            sqnr_db=None if parity is None else parity.sqnr_db,
            drop_points=self.drop_points,
            is_given=self.form == GIVEN and (parity is None or not parity.nonfinite),
            refused=self.outcome if is_refused else "",
        )


@dataclass(frozen=True, kw_only=True)
class Choice(TrialResult):
    """The candidate to ship: why, the absolute `path` of its file, and the command that measures it again."""

    reason: str
    path: Path
    command: str

    def __str__(self) -> str:
        return f"{self.title}: {self.reason}"


@dataclass(frozen=True)
class Steps:
    """How many steps were known from an earlier run, and how many were done now."""

    remembered: int
    done: int


@dataclass(frozen=True, kw_only=True)
class TuneReport(Report):
    """All candidates with what was measured, and the choice.

    Attributes:
        chosen: the candidate to ship; None if none keeps the limits.
        reason: why, or which limits cannot be kept.
        pareto: candidates that no other matches in latency, throughput, memory, file size and answers and beats in one;
            figures within 2 % count as equal. Different models are compared only if labels were given. Includes the
            choice.
        candidates: all of them.
        reference: what speeds are relative to.
        state: the file that keeps the results.
    """

    kind: ClassVar[str] = "tune"

    chosen: Choice | None
    reason: str
    pareto: tuple[TrialResult, ...]
    candidates: tuple[TrialResult, ...]
    limits: Limits
    goal: str
    reference: str
    machine: Machine
    seconds: float
    steps: Steps
    state: Path
    dry_run: bool = False

    @property
    def failure(self) -> GateError | None:
        """What to raise if nothing keeps the limits."""
        if self.chosen is not None:
            return None
        return GateError("tune", f"no candidate can be shipped: {self.reason}", "relax the limits, or try more")

    @functools.cached_property
    def decision(self) -> Decision:
        """The choice as a value: what it is compared with, what is as fast, and the words for it."""
        return decision_of(self.candidates, self.chosen, self.goal)

    def to_text(self) -> str:
        """Return the choice, the table that it was made from, and why others are not in it."""
        chosen, decision = self.chosen, self.decision
        lines = [line("chosen", "none" if chosen is None else printable(chosen.model))]
        sentences = [", ".join(decision.headline), decision.compared_with, decision.place_in_words]
        reasons = [self.reason] if chosen is None else [one for one in sentences if one]
        lines += [line("" if place else "reason", reason) for place, reason in enumerate(reasons)]
        if decision.candidates:
            lines += ["", *decision.table("", decision.shown).lines(), ""]
        lines += [line("left out", f"{one.title}: {decision.verdict(one)}") for one in decision.others]
        failed = [one for one in self.candidates if one.latency_ms is None]
        lines += [line("left out", f"{one.title}: {printable(one.outcome)}") for one in failed]
        lines += [
            line("steps", f"{self.steps.remembered} remembered, {self.steps.done} done in {self.seconds:.0f} s"),
            line("machine", self.machine),
        ]
        return "\n".join([*lines, *([] if chosen is None else [line("again", chosen.command)])])

    def tables(self) -> list[Table]:
        """Return the table of candidates."""
        return [self.decision.table("", self.decision.shown)] if self.decision.candidates else []


def decision_of(found: Sequence[TrialResult], chosen: TrialResult | None, goal: str = "latency") -> Decision:
    """Return the decision that chose one of `found`, which all that says so is read from."""
    timed = [one for one in found if one.latency_ms is not None]
    least = min((one.batch for one in timed), default=None) if goal == "latency" else None
    candidates = [one.candidate(least) for one in timed]
    places = (place for place, one in enumerate(timed) if chosen is not None and one.key == chosen.key)
    place = next(places, None)
    decision = Decision.of(candidates, None if place is None else candidates[place], goal)
    return decision if place is not None else replace(decision, choice=None)


@dataclass(frozen=True)
class PlannedFile:
    """A file that is tried, in which form, and whether it is up to date or has to be made."""

    file: Path
    form: str
    up_to_date: bool

    def __str__(self) -> str:
        return f"{printable(self.file)}: {'up to date' if self.up_to_date else 'to be made'}"


@dataclass(frozen=True)
class PlannedWork:
    """The files, the number of `candidates` to time, and of `comparisons` of answers."""

    files: tuple[PlannedFile, ...]
    candidates: int
    comparisons: int
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DryRunReport(Report):
    """What a tuning would try, under the keys of its report."""

    kind: ClassVar[str] = "tune --dry-run"

    plan: PlannedWork
    state: Path
    pareto: tuple[TrialResult, ...] = ()
    chosen: Choice | None = None
    dry_run: bool = True

    def to_text(self) -> str:
        """Return the files, the candidates, and the amount of work."""
        plan = self.plan
        threads, batches = ", ".join(map(str, plan.threads)), ", ".join(map(str, plan.batches))
        where = f"on {', '.join(plan.backends)}; threads {threads}; batches {batches}"
        missing = sum(not file.up_to_date for file in plan.files)
        work = f"{missing} files to make, {plan.candidates} short timings, {plan.comparisons} comparisons of answers"
        return "\n".join(
            [
                *(line("file", str(file)) for file in plan.files),
                line("candidates", f"{plan.candidates}: {where}"),
                line("work", f"{work}, then longer timings of the fastest, at most {GROUP_SIZE} at a time"),
                line("known", f"results in {printable(self.state)} are not measured again"),
            ]
        )


def report_of(
    search: Search,
    trials: Sequence[Trial],
    *,
    machine: Machine,
    seconds: float,
    results: ResultCache,
    notes: tuple[str, ...] = (),
    compare_models: bool = True,
) -> TuneReport:
    """Return the report of a finished search; `compare_models`: whether labels rank answers of different models."""
    found = tuple(TrialResult.of(trial, search) for trial in trials)
    chosen = next((one for one in found if one.outcome == CHOSEN), None)
    reason = "; ".join(_limits_that_fail(found, search.limits))
    choice = None
    if chosen is not None:
        reason = decision_of(found, chosen, search.goal).sentence
        facts = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
        words = f"--backend {chosen.backend} --threads {chosen.threads} --batch {chosen.batch}"
        command = f"densenet-deploy benchmark {shlex.quote(str(chosen.model))} {words}"
        choice = Choice(**facts, reason=reason, path=chosen.model.absolute(), command=command)
    return TuneReport(
        chosen=choice,
        reason=reason,
        pareto=_pareto(found, compare_models=compare_models),
        candidates=found,
        limits=search.limits,
        goal=search.goal,
        reference=str(search.measurer.reference),
        machine=machine,
        seconds=seconds,
        steps=Steps(results.reused, results.done),
        state=results.path,
        notes=notes,
    )


def _pareto(found: Sequence[TrialResult], *, compare_models: bool) -> tuple[TrialResult, ...]:
    groups: dict[str, list[TrialResult]] = {}
    for one in found:
        if one.is_sound:
            groups.setdefault("" if compare_models else one.base, []).append(one)
    front = [group[index] for group in groups.values() for index in undominated([*map(_costs, group)])]
    front += [one for one in found if one.outcome == CHOSEN and one not in front]
    return tuple(sorted(front, key=lambda one: one.latency_ms or math.inf))


def _costs(one: TrialResult) -> tuple[float, ...]:
    """Smaller is better in each: latency of a call, time per image, memory, file size, answers."""
    assert one.latency_ms is not None
    assert one.peak_memory_bytes is not None
    assert one.parity is not None
    figures = (one.latency_ms, one.latency_ms / one.batch, one.peak_memory_bytes, one.bytes)
    return (
        *(float(round(math.log(figure, _EQUAL))) for figure in figures),
        -round(score_of(one.accuracy, one.parity.sqnr_db), 4),
    )


def _limits_that_fail(found: Sequence[TrialResult], limits: Limits) -> list[str]:
    """For each limit, what comes nearest to it; or that the limits can only be kept one by one."""
    run = [one for one in found if one.latency_ms is not None]
    if not run:
        return ["no candidate can run here"]
    verdicts = [*_verdicts(run, limits)]
    failed = [words for keeps, words in verdicts if not keeps]
    if failed or not verdicts:
        return failed or ["no candidate gives finite answers"]
    return ["each limit can be kept alone, but no candidate keeps all of them", *(words for _, words in verdicts)]


def _verdicts(run: Sequence[TrialResult], limits: Limits) -> Iterator[tuple[bool, str]]:
    drops = [one.drop_points for one in run if one.drop_points is not None]
    if limits.max_latency_ms is not None:
        least = min(one.latency_ms for one in run if one.latency_ms is not None)
        yield _verdict("--max-latency", least, limits.max_latency_ms, "ms", "the fastest takes")
    if limits.max_memory_bytes is not None:
        least = min(one.peak_memory_bytes for one in run if one.peak_memory_bytes is not None) / _MIB
        yield _verdict("--max-memory", least, limits.max_memory_bytes / _MIB, "MiB", "the smallest takes")
    if limits.max_drop is not None and drops:
        yield _verdict("--max-drop", min(drops), limits.max_drop, "points", "the smallest is")
    elif limits.max_drop is not None:
        yield False, "--max-drop: the classes of no candidate could be compared"


def _verdict(name: str, found: float, limit: float, unit: str, words: str) -> tuple[bool, str]:
    keeps = found <= limit
    return keeps, f"{name} {limit:g} {'can' if keeps else 'cannot'} be kept ({words} {found:.4g} {unit})"

"""Which file to ship: what `tune` chose, else what the measurements at hand say by one stated rule.

The rule: of the models that may be judged, the one whose median call is shortest, at the smallest batch measured. A
model may be judged if it is the very file that was measured, missed no gate and, where any accuracy is known, was
evaluated and loses at most `max_drop` points to the most accurate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from densenet_deploy.workflows.html_report.cells import points
from densenet_deploy.workflows.html_report.inputs import Accuracy, Measured
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.models import ModelFacts, model_called
from densenet_deploy.workflows.html_report.tuning import Trial, Tuning


@dataclass(frozen=True)
class Choice:
    """The model to ship, None where none can be recommended; why; what it was measured at; what speaks against."""

    model: str
    facts: ModelFacts | None
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]
    latency_ms: float | None = None
    interval: tuple[float, float] | None = None
    memory_bytes: float | None = None
    top1: float | None = None
    runs_on: str = ""


@dataclass(frozen=True)
class Entry:
    """A model, its measurement and, where known, its accuracy."""

    model: ModelFacts
    measured: Measured
    accuracy: Accuracy | None

    @property
    def top1(self) -> float:
        return 0.0 if self.accuracy is None else self.accuracy.top1


def decide(material: Material) -> Choice:
    """Return the choice of the newest run of `tune`, or else of the rule above."""
    if material.tunings:
        return _tuned(material.tunings[-1], material)
    entries = entries_of(material)
    if not entries:
        return _undecided(material)
    chosen, reasons = _by_rule(entries, material.max_drop)
    measured = chosen.measured
    cautions = (*_about_entries(chosen, entries), *_about_model(chosen.model), *_about_measurements(material))
    return Choice(
        model=chosen.model.name,
        facts=chosen.model,
        reasons=reasons,
        cautions=cautions,
        latency_ms=measured.median,
        interval=measured.interval,
        memory_bytes=measured.memory_bytes,
        top1=None if chosen.accuracy is None else chosen.accuracy.top1,
        runs_on=runs_on(measured.backend, measured.threads, measured.batch, measured.device),
    )


def runs_on(backend: str, threads: int | None, batch: int, device: str = "") -> str:
    """Say on what a model ran.

    >>> runs_on("openvino", 1, 8, "cpu")
    'openvino, cpu, 1 thread, batch 8'
    """
    counted = "" if not threads else f"{threads} thread{'' if threads == 1 else 's'}"
    return ", ".join(filter(None, (backend, device, counted, f"batch {batch}")))


def is_stale(measured: Measured, models: Sequence[ModelFacts]) -> bool:
    """Whether a result was measured on other bytes than the model of that name has now."""
    model = model_called(measured.model, models)
    return model is not None and bool(measured.sha256) and measured.sha256 != model.sha256


def entries_of(material: Material) -> list[Entry]:
    """The models that were measured, each at its best, at the smallest batch of the first scenario."""
    measured = [result for result in material.results if model_called(result.model, material.models) is not None]
    usable = [result for result in measured if not is_stale(result, material.models)]
    refused = {validation.model for validation in material.validations if validation.passed is False}
    if not usable:
        return []
    first = min(usable, key=lambda result: result.batch)
    best: dict[str, Entry] = {}
    for result in usable:
        model = model_called(result.model, material.models)
        assert model is not None
        if (result.batch, result.scenario) != (first.batch, first.scenario) or any(map(model.is_meant_by, refused)):
            continue
        known = best.get(model.name)
        if known is None or result.median < known.measured.median:
            best[model.name] = Entry(model, result, material.accuracy_of(model))
    return list(best.values())


def _by_rule(entries: Sequence[Entry], max_drop: float) -> tuple[Entry, tuple[str, ...]]:
    judged = [entry for entry in entries if entry.accuracy is not None] or list(entries)
    best = max(entry.top1 for entry in judged)
    fit = [entry for entry in judged if 100 * (best - entry.top1) <= max_drop + 1e-9]
    chosen = min(fit, key=lambda entry: entry.measured.median)
    place = runs_on(chosen.measured.backend, chosen.measured.threads, chosen.measured.batch)
    if len(entries) == 1:
        return chosen, (f"It is the only model here that was measured, on {place}.",)
    if chosen.accuracy is None:
        return chosen, (f"Of {len(entries)} models measured, its median call is the shortest, on {place}.",)
    lost = 100 * (best - chosen.top1)
    said = "none is more accurate" if lost <= 0 else f"it loses {lost:.2f} points to the most accurate"
    within = f"Of {len(fit)} models that lose at most {points(max_drop)} of top-1, its median call is the shortest"
    return chosen, (f"{within}, on {place}; {said}.",)


def _about_entries(chosen: Entry, entries: Sequence[Entry]) -> list[str]:
    told = []
    limit = chosen.measured.interval
    for other in entries:
        span = other.measured.interval
        if other is not chosen and limit is not None and span is not None and span[0] <= limit[1]:
            told.append(f"{other.model.name} may be as fast: the intervals of the two overlap.")
    if chosen.accuracy is None:
        told.append("No accuracy is known: run evaluate on figures of yours before you ship anything.")
    elif any(entry.accuracy is None for entry in entries):
        names = ", ".join(entry.model.name for entry in entries if entry.accuracy is None)
        told.append(f"Not evaluated, and so not considered: {names}.")
    counts = {entry.accuracy.count for entry in entries if entry.accuracy is not None}
    if len(counts) > 1:
        told.append("Accuracies were found on different numbers of figures.")
    return told


def _sentences(notes: Iterable[str]) -> list[str]:
    """Notes of commands begin small and end without a point."""
    return [f"{note[:1].upper()}{note[1:].removesuffix('.')}." for note in notes]


def _about_model(model: ModelFacts | None) -> list[str]:
    """Remarks that inspecting the chosen file made: that it is untrained, above all."""
    return [] if model is None else _sentences(model.notes)


def _about_measurements(material: Material) -> list[str]:
    told = [said for benchmark in material.benchmarks for said in _sentences(benchmark.notes)]
    stale = sorted({result.model for result in material.results if is_stale(result, material.models)})
    told += [f"{name} has changed since it was measured; that measurement was left aside." for name in stale]
    for validation in material.validations:
        if validation.passed is False and model_called(validation.model, material.models) is not None:
            told.append(f"{validation.model} missed a gate, and was not considered: {'; '.join(validation.failed)}.")
    return list(dict.fromkeys(told))


def _undecided(material: Material) -> Choice:
    (first, *_) = material.models
    if material.results:
        reasons = ("No measurement given here is of these very files, or all of them missed a gate.",)
    else:
        reasons = ("Nothing was measured yet. The facts below are read from the files.",)
    return Choice("", None, reasons, (*_about_model(first), *_about_measurements(material)))


def _tuned(tuning: Tuning, material: Material) -> Choice:
    trial = tuning.chosen
    if trial is None:
        why = tuning.reason or "tune found no candidate that keeps the limits it was given."
        return Choice("", None, (why,), tuple(_sentences(tuning.notes)))
    facts = model_called(trial.model, material.models)
    place = runs_on(trial.backend, trial.threads, trial.batch)
    reasons = (*_sentences(filter(None, (tuning.reason,))), f"Chosen by tune; measured on {place}.")
    return Choice(
        model=trial.model.rpartition("/")[2],
        facts=facts,
        reasons=reasons,
        cautions=(*_about_chosen(trial, facts), *_sentences(tuning.notes)),
        latency_ms=trial.latency_ms,
        interval=trial.interval,
        memory_bytes=trial.memory_bytes,
        top1=trial.top1,
        runs_on=place,
    )


def _about_chosen(trial: Trial, facts: ModelFacts | None) -> list[str]:
    told = _about_model(facts)
    if facts is None:
        told.append("The file was not given to this report, so its bytes were not compared with those tuned.")
    elif trial.sha256 and trial.sha256 != facts.sha256:
        told.append("The file has changed since it was tuned: its SHA-256 is another. Tune again.")
    if trial.top1 is None:
        told.append("No accuracy is known: run evaluate on figures of yours before you ship it.")
    return told

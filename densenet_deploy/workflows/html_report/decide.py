"""Which file to ship: what `tune` chose, else what the measurements at hand say by the same rule.

A model is considered if it is the very file that was measured, missed no gate and, where any accuracy is known, was
evaluated and loses at most `max_drop` points of accuracy (top-1, or the mean AUROC of a multilabel model) to the best
FP32 model (to the best of all, where none is FP32). Accuracies of different kinds are not compared.
Of these `analysis.choice` picks one, by the median call at the smallest batch measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.choice import ModelMerits, choose
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.workflows.evaluation.report import Accuracy
from densenet_deploy.workflows.html_report.load import Interval, Material, ModelSummary
from densenet_deploy.workflows.tune.report import TrialResult, TuneReport

_UNKNOWN_ACCURACY: Final = "The accuracy is unknown: run evaluate on labelled images."


@dataclass(frozen=True)
class Decision:
    """The file to ship, why, what it was measured at, and what to consider before.

    `model` is empty where nothing can be recommended; `path` is None where the file is not on this machine.
    """

    model: str
    reasons: tuple[str, ...]
    cautions: tuple[str, ...]
    path: Path | None = None
    backend: str = ""
    precision: str = ""
    latency_ms: float | None = None
    interval_ms: Interval | None = None
    memory_bytes: float | None = None
    file_bytes: int | None = None
    accuracy: Accuracy | None = None


@dataclass(frozen=True)
class Entry:
    """A model, its measurement and, where known, its accuracy."""

    model: ModelSummary
    measured: Measurement
    accuracy: Accuracy | None


def decide(material: Material) -> Decision:
    """Return the choice of the last run of `tune`, or else that of the rule."""
    if material.tunings:
        return _of_tune(material.tunings[-1].report, material)
    entries = entries_of(material)
    if not entries:
        return _undecided(material)
    kinds = {entry.accuracy.name for entry in entries if entry.accuracy is not None}
    if len(kinds) > 1:
        entries = [replace(entry, accuracy=None) for entry in entries]
    chosen, reason = _by_rule(entries, material.sources.max_drop)
    measured, model = chosen.measured, chosen.model
    return Decision(
        model=model.name,
        reasons=(reason,),
        cautions=(*_about_entries(chosen, entries, material), *_sentences(model.notes), *_about_measurements(material)),
        path=model.path if model.temporary is None else None,
        backend=measured.backend,
        precision=model.precision,
        latency_ms=measured.median_ms,
        interval_ms=measured.interval_ms,
        memory_bytes=measured.peak_memory_bytes,
        file_bytes=model.bytes,
        accuracy=chosen.accuracy,
    )


def runs_on(backend: str, threads: int, batch: int) -> str:
    """Return how a model ran, in words.

    >>> runs_on("openvino", 1, 8)
    'openvino, 1 thread, batch 8'
    """
    return f"{backend}, {threads} thread{'' if threads == 1 else 's'}, batch {batch}"


def file_of(described: str) -> str:
    """Return the file in `FILE: backend version, provider, …`.

    >>> file_of("models/a.onnx: openvino 2026.0, CPU")
    'models/a.onnx'
    """
    return described.rpartition(": ")[0] or described


def entries_of(material: Material) -> list[Entry]:
    """The models that were measured, each at its fastest, at the smallest batch of the first scenario."""
    refused = [file_of(loaded.report.candidate) for loaded in material.validations if loaded.report.passed is False]
    usable = [
        (model, result)
        for result in material.results
        if (model := material.model_called(result.model)) is not None and not material.is_stale(result)
    ]
    if not usable:
        return []
    _, first = min(usable, key=lambda pair: pair[1].batch)
    best: dict[str, Entry] = {}
    for model, result in usable:
        if (result.batch, result.scenario) != (first.batch, first.scenario) or any(map(model.is_called, refused)):
            continue
        known = best.get(model.name)
        if known is None or result.median_ms < known.measured.median_ms:
            best[model.name] = Entry(model, result, material.accuracy_of(model))
    return list(best.values())


def points(value: float) -> str:
    """Return percentage points in words.

    >>> points(1.0), points(0.5)
    ('1 point', '0.5 points')
    """
    return f"{value:g} point{'' if value == 1 else 's'}"


def _by_rule(entries: Sequence[Entry], max_drop: float) -> tuple[Entry, str]:
    judged = [entry for entry in entries if entry.accuracy is not None] or list(entries)
    baseline = _baseline(judged)
    fit = [entry for entry in judged if _drop(entry, baseline) <= max_drop + 1e-9]
    choice = choose([_merits(entry) for entry in fit])
    chosen = fit[choice.index]
    place = runs_on(chosen.measured.backend, chosen.measured.threads, chosen.measured.batch)
    if len(entries) == 1:
        return chosen, f"It is the only model here that was measured, on {place}."
    if chosen.accuracy is None:
        return chosen, f"By the median call it is {choice.reason} models measured, on {place}."
    lost = _drop(chosen, baseline)
    accuracy = f"it loses {lost:.2f} points" if lost > 0 else "it loses no accuracy"
    within = f"Of the models that lose at most {points(max_drop)} of {chosen.accuracy.name} it is {choice.reason}"
    return chosen, f"{within}, on {place}; {accuracy}."


def _baseline(entries: Sequence[Entry]) -> float:
    """The best accuracy of an FP32 model; of any, where none is FP32."""
    full = [_value(entry) for entry in entries if entry.model.precision == "fp32"]
    return max(full or map(_value, entries))


def _drop(entry: Entry, baseline: float) -> float:
    return 100 * (baseline - _value(entry))


def _value(entry: Entry) -> float:
    return 0.0 if entry.accuracy is None else entry.accuracy.value


def _merits(entry: Entry) -> ModelMerits:
    measured = entry.measured
    return ModelMerits(
        measured.batch / measured.median_ms, _value(entry), entry.model.bytes, measured.peak_memory_bytes
    )


def _about_entries(chosen: Entry, entries: Sequence[Entry], material: Material) -> list[str]:
    cautions = []
    own = chosen.measured.interval_ms
    for other in entries:
        span = other.measured.interval_ms
        if other is not chosen and own is not None and span is not None and span[0] <= own[1] and own[0] <= span[1]:
            cautions.append(f"{other.model.name} may be as fast: the 95 % intervals of the two overlap.")
    known = {entry.model.name: material.accuracy_of(entry.model) for entry in entries}
    if chosen.accuracy is None:
        cautions.append(_without_accuracy(chosen.model, known, material))
    elif names := ", ".join(entry.model.name for entry in entries if entry.accuracy is None):
        cautions.append(f"Not considered, since their {chosen.accuracy.name} is unknown: {names}.")
    counts = {found.count for entry in entries if (found := material.evaluation_of(entry.model)) is not None}
    if len(counts) > 1:
        cautions.append("The accuracies were measured on different numbers of images.")
    return cautions


def _without_accuracy(chosen: ModelSummary, known: Mapping[str, Accuracy | None], material: Material) -> str:
    """Why models are not judged by their accuracy."""
    kinds = sorted({found.name for found in known.values() if found is not None})
    if kinds:
        return f"The models were judged by different figures ({', '.join(kinds)}), so accuracy was not considered."
    evaluation = material.evaluation_of(chosen)
    if evaluation is not None:
        return f"The accuracy of a {evaluation.task} model was not considered: compare the figures below."
    return _UNKNOWN_ACCURACY


def _sentences(notes: Iterable[str]) -> list[str]:
    """Notes of commands start in lower case and end without a full stop."""
    return [f"{note[:1].upper()}{note[1:].removesuffix('.')}." for note in notes]


def _about_measurements(material: Material) -> list[str]:
    cautions = [sentence for loaded in material.benchmarks for sentence in _sentences(loaded.report.notes)]
    stale = sorted({result.model for result in material.results if material.is_stale(result)})
    cautions += [f"{name} has changed since it was measured; that measurement was not used." for name in stale]
    for validation in (loaded.report for loaded in material.validations):
        model = file_of(validation.candidate)
        if validation.passed is False and material.model_called(model) is not None:
            cautions.append(f"{model} missed a gate ({'; '.join(validation.failed)}): not considered.")
    return list(dict.fromkeys(cautions))


def _undecided(material: Material) -> Decision:
    if material.results:
        reason = "No measurement given here is of these files as they are now, or all of them missed a gate."
    elif material.reports:
        reason = "The speed was not measured yet, by which a model is chosen. What was measured stands below."
    else:
        reason = "Nothing was measured yet. The facts below are read from the files."
    return Decision("", (reason,), (*_sentences(material.models[0].notes), *_about_measurements(material)))


def _of_tune(report: TuneReport, material: Material) -> Decision:
    trial = report.chosen
    if trial is None:
        return Decision("", tuple(_sentences([report.reason])), tuple(_sentences(report.notes)))
    model = material.model_called(str(trial.model))
    path = model.path if model is not None else next(filter(Path.is_file, (trial.model, trial.path)), None)
    accuracy = trial.accuracy if trial.accuracy is not None or model is None else material.accuracy_of(model)
    place = runs_on(trial.backend, trial.threads, trial.batch)
    return Decision(
        model=trial.model.name,
        reasons=(*_sentences([report.reason]), f"Chosen by tune; measured on {place}."),
        cautions=(*_about_chosen(trial, model, path, accuracy), *_sentences(report.notes)),
        path=path,
        backend=trial.backend,
        precision=trial.precision,
        latency_ms=trial.latency_ms,
        interval_ms=trial.interval_ms,
        memory_bytes=trial.peak_memory_bytes,
        file_bytes=trial.bytes if model is None else model.bytes,
        accuracy=accuracy,
    )


def _about_chosen(
    trial: TrialResult, model: ModelSummary | None, path: Path | None, accuracy: Accuracy | None
) -> list[str]:
    cautions = [] if model is None else _sentences(model.notes)
    if path is None:
        cautions.append(f"{trial.model} is not on this machine, so it was not compared with the file that was tuned.")
    elif trial.sha256 != (sha256_of(path) if model is None else model.sha256):
        cautions.append("The file has changed since it was tuned: its SHA-256 differs. Tune again.")
    if accuracy is None:
        cautions.append(_UNKNOWN_ACCURACY)
    return cautions

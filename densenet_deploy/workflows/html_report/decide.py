"""Which file to ship: what `tune` chose, else what the measurements at hand say by the same rule, and what to consider.

Without `tune`, the candidates are the measurements of `benchmark` at its smallest batch. One may be shipped if it is of
the very file that is there now, was measured on the same machine as the others, missed no gate and, where any accuracy
is known, was evaluated and loses at most `max_drop` points of accuracy (top-1, or the mean AUROC of a multilabel model)
to the best FP32 model (to the best of all, where none is FP32). Files that were measured but are not on the page are
candidates that may not be shipped. The error of a regression has a unit and is not limited. Figures of different tasks,
and those on different images, are not compared.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.workflows.decision import Decision, MeasuredCandidate
from densenet_deploy.workflows.html_report.load import Material, ModelSummary, same_name
from densenet_deploy.workflows.html_report.page import PROGRAM
from densenet_deploy.workflows.tune.report import Choice, TuneReport

_NOT_EVALUATED: Final = "not evaluated"
_NOT_GIVEN: Final = "not among the models of this page"


@dataclass(frozen=True)
class Advice:
    """The decision, and what to consider before the file is shipped.

    Attributes:
        why_none: why nothing is recommended, where nothing is.
        path: the file; None where it is not on this machine.
        machine: what it was measured on.
    """

    decision: Decision
    cautions: tuple[str, ...] = ()
    why_none: str = ""
    path: Path | None = None
    machine: Machine | None = None

    @property
    def model(self) -> str:
        """The name of the file to ship; empty where nothing is recommended."""
        return "" if self.decision.chosen is None else self.decision.chosen.model


def decide(material: Material) -> Advice:
    """Return the choice of the last run of `tune`, or else that of the rule."""
    if material.tunings:
        return _of_tune(material.tunings[-1].report, material)
    candidates, cautions, machine = _measured(material)
    decision = Decision.of(candidates)
    chosen = decision.chosen
    about = (*cautions, *_about_measurements(material))
    if chosen is None:
        return Advice(decision, (*_sentences(material.models[0].notes), *about), _why_none(material))
    model = material.model_called(chosen.model)
    assert model is not None
    path = model.path if model.temporary is None else None
    return Advice(decision, _unique(*_about_accuracy(decision), *_sentences(model.notes), *about), "", path, machine)


def file_of(described: str) -> str:
    """Return the file in `FILE: backend version, provider, …`.

    >>> file_of("models/a.onnx: openvino 2026.0, CPU")
    'models/a.onnx'
    """
    return described.rpartition(": ")[0] or described


def _measured(material: Material) -> tuple[list[MeasuredCandidate], list[str], Machine | None]:
    """The measurements at the smallest batch of the first scenario, what has to be said of them, and their machine."""
    known = [one for one in material.results if material.model_called(one.model) is not None]
    usable = [one for one in known if not material.is_stale(one)] or known
    if not usable:
        return [], [], None
    first = min(usable, key=lambda one: one.batch)
    home = next(loaded for loaded in material.benchmarks if any(one is first for one in loaded.report.results))
    machine, found, cautions, runs = home.report.machine, list[MeasuredCandidate](), list[str](), 0
    for loaded in material.benchmarks:
        results = loaded.report.results
        alike = [one for one in results if (one.batch, one.scenario) == (first.batch, first.scenario)]
        elsewhere = machine.other_hardware(loaded.report.machine)
        found += [_candidate(one, material, is_elsewhere=bool(elsewhere)) for one in alike]
        runs += bool(alike) and not elsewhere
        if alike and elsewhere:
            than = f"another machine than that of {home.name} ({'; '.join(elsewhere)})"
            cautions.append(f"{loaded.name} was measured on {than}, so its files were not considered.")
    if runs > 1:
        cautions.append(f"The times are of {runs} runs: what changed between them is not part of the intervals.")
    judged, about = _judged(found, material)
    return judged, [*cautions, *about], machine


def _judged(found: list[MeasuredCandidate], material: Material) -> tuple[list[MeasuredCandidate], list[str]]:
    """Refuse what loses too much accuracy or is not known to keep it; and what has to be said of the accuracies."""
    why = _not_comparable(found)
    if why:
        found = [replace(one, accuracy=None) for one in found]
        return found, [f"The models were {why}, so accuracy was not considered.", *_left_out(found, material)]
    counts = {one.labelled for one in found if one.accuracy is not None}
    notes = ["The accuracies were measured on different numbers of images."] if len(counts) > 1 else []
    limited = _limited(found, material.sources.max_drop)
    return limited, [*notes, *_left_out(limited, material)]


def _not_comparable(found: Sequence[MeasuredCandidate]) -> str:
    """Why the accuracies of candidates say nothing about each other; empty where they do."""
    judged = [one for one in found if one.accuracy is not None]
    kinds = sorted({one.accuracy.name for one in judged if one.accuracy is not None})
    if len(kinds) > 1:
        return f"judged by different figures ({', '.join(kinds)})"
    return "evaluated on different images" if len({one.images for one in judged} - {None}) > 1 else ""


def _candidate(measured: Measurement, material: Material, *, is_elsewhere: bool) -> MeasuredCandidate:
    model = material.model_called(measured.model)
    missed = [one.report for one in material.validations if one.report.passed is False]
    refused = ""
    if model is None:
        refused = _NOT_GIVEN
    elif material.is_stale(measured):
        refused = "the file has changed since"
    elif is_elsewhere:
        refused = "measured on another machine"
    elif any(model.is_called(file_of(one.candidate)) for one in missed):
        refused = "missed a gate"
    candidate = MeasuredCandidate(
        model=Path(measured.model).name if model is None else model.name,
        precision=measured.precision,
        backend=measured.backend,
        threads=measured.threads,
        batch=measured.batch,
        latency_ms=measured.median_ms,
        interval_ms=measured.interval_ms,
        file_bytes=None if model is None else model.bytes,
        memory_bytes=measured.peak_memory_bytes,
        is_given=model is not None and model.precision == "fp32" and not refused,
        refused=refused,
    )
    judged = material.judged(candidate, measured.model)
    is_unknown = refused == _NOT_GIVEN and judged.accuracy is None and material.evaluations
    return replace(judged, refused=_NOT_EVALUATED) if is_unknown else judged


def _limited(found: Sequence[MeasuredCandidate], max_drop: float) -> list[MeasuredCandidate]:
    """Refuse candidates of unknown accuracy, and those that lose too much of it."""
    if all(one.accuracy is None for one in found):
        return list(found)
    limited = []
    for one in with_drops(found):
        why = one.refused
        if not why and one.accuracy is None:
            why = _NOT_EVALUATED
        elif not why and one.drop_points is not None and one.drop_points > max_drop + 1e-9:
            why = f"loses more than {points(max_drop)}"
        limited.append(replace(one, refused=why))
    return limited


def _left_out(found: Sequence[MeasuredCandidate], material: Material) -> list[str]:
    """What was measured but not evaluated or not given, or evaluated but not measured, and what to do about it."""
    sentences, paths = [], {Path(one.model).name: one.model for one in material.results}
    slowest_first = sorted(found, key=lambda one: -one.latency_ms)
    for one in {one.model: one for one in slowest_first}.values():
        if one.refused == _NOT_EVALUATED:
            run = _line("evaluate", paths.get(one.model, one.model), "--data", "FOLDER")
            sentences.append(f"{one.model} was measured ({milliseconds(one.latency_ms)} ms) but not evaluated, {run}.")
        elif one.refused == _NOT_GIVEN:
            measured = f"{one.model} was measured ({milliseconds(one.latency_ms)} ms)"
            sentences.append(f"{measured}, but is not among the models of this page, so it was not considered.")
    for path, known in {one.model: one.accuracy for one in material.evaluated}.items():
        if not any(same_name(path, measured.model) for measured in material.results):
            shown = "" if known is None else f" ({known})"
            sentences.append(f"{Path(path).name} was evaluated{shown} but not measured, {_line('benchmark', path)}.")
    return sentences


def _line(command: str, *arguments: str) -> str:
    line = shlex.join([PROGRAM, command, *arguments, "--json"])
    return f"so it was not considered: run `{line}`, and give its output to report with the file"


def with_drops(found: Sequence[MeasuredCandidate]) -> list[MeasuredCandidate]:
    """Return the candidates with the points of accuracy that each loses to the best FP32 file."""
    known = [one for one in found if one.accuracy is not None and not one.accuracy.metric.is_error]
    best = max((_value(one) for one in [one for one in known if one.is_given] or known), default=0.0)
    return [replace(one, drop_points=100 * (best - _value(one))) if one in known else one for one in found]


def _value(one: MeasuredCandidate) -> float:
    assert one.accuracy is not None
    return one.accuracy.value


def points(value: float) -> str:
    """Return percentage points in words.

    >>> points(1.0), points(0.5)
    ('1 point', '0.5 points')
    """
    return f"{value:g} point{'' if value == 1 else 's'}"


def _about_accuracy(decision: Decision) -> list[str]:
    chosen = decision.chosen
    if chosen is None:
        return []
    if chosen.accuracy is None:
        return ["The accuracy is unknown: run evaluate on labelled images."]
    cautions = []
    if decision.is_worse:
        cautions.append(f"Its answers are worse than those of the FP32 file: {decision.headline[-1]}.")
    if chosen.accuracy.metric.is_error:
        cautions.append("No limit applies to the error of a regression: judge it by the table.")
    return cautions


def _sentences(notes: Iterable[str]) -> list[str]:
    """Notes of commands start in lower case and end without a full stop."""
    return [f"{note[:1].upper()}{note[1:].removesuffix('.')}." for note in notes]


def _unique(*sentences: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sentences))


def _about_measurements(material: Material) -> list[str]:
    cautions = [sentence for loaded in material.benchmarks for sentence in _sentences(loaded.report.notes)]
    stale = sorted({result.model for result in material.results if material.is_stale(result)})
    cautions += [f"{name} has changed since it was measured; that measurement was not used." for name in stale]
    outdated = sorted({found.model for found in material.evaluated if material.is_stale(found)})
    cautions += [f"{name} has changed since it was evaluated; that evaluation was not used." for name in outdated]
    for validation in (loaded.report for loaded in material.validations):
        model = file_of(validation.candidate)
        if validation.passed is False and material.model_called(model) is not None:
            cautions.append(f"{model} missed a gate ({'; '.join(validation.failed)}): not considered.")
    return list(dict.fromkeys(cautions))


def _why_none(material: Material) -> str:
    if material.results:
        return "No measurement given here is of these files as they are now, or all of them missed a gate or the limit."
    if material.reports:
        return "The speed was not measured yet, by which a model is chosen. What was measured stands below."
    return "Nothing was measured yet. The facts below are read from the files."


def _of_tune(report: TuneReport, material: Material) -> Advice:
    decision, trial = _with_evaluations(report.decision, material), report.chosen
    if trial is None:
        (why,) = _sentences([report.reason])
        return Advice(decision, tuple(_sentences(report.notes)), why, machine=report.machine)
    model = material.model_called(str(trial.model))
    shown = model or material.shipped
    path = None if shown is None else shown.path
    about = (*_about_file(trial, model, shown), *_about_accuracy(decision), *_about_unknown(decision))
    unlimited = decision.is_worse and report.limits.max_drop is None
    missing = ["tune was given no --max-drop, so no loss of accuracy was too large for it."] if unlimited else []
    cautions = _unique(*about, *missing, *_sentences(report.notes))
    return Advice(decision, cautions, "", path, report.machine)


def _with_evaluations(decision: Decision, material: Material) -> Decision:
    """Return it with the accuracies of `evaluate` where `tune` was given no labels, if they can be compared."""
    if any(one.accuracy is not None for one in decision.candidates):
        return decision
    found = [
        one if (model := material.model_called(one.model)) is None else material.judged(one, model.name)
        for one in decision.candidates
    ]
    if _not_comparable(found) or all(one.accuracy is None for one in found):
        return decision
    return replace(decision, candidates=tuple(with_drops(found)))


def _about_unknown(decision: Decision) -> list[str]:
    chosen = decision.chosen
    if chosen is None or chosen.accuracy is None:
        return []
    unknown = dict.fromkeys(one.model for one in decision.candidates if one.accuracy is None)
    why = f"Not considered, since their {chosen.accuracy.name} is unknown: {', '.join(unknown)}."
    return [why] if unknown else []


def _about_file(trial: Choice, model: ModelSummary | None, shown: ModelSummary | None) -> list[str]:
    cautions = [] if model is None else _sentences(model.notes)
    if shown is None:
        cautions.append(f"{trial.model} is not on this machine, so it was not compared with the file that was tuned.")
    elif trial.sha256 != shown.sha256:
        cautions.append("The file has changed since it was tuned: its SHA-256 differs. Tune again.")
    return cautions

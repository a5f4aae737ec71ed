"""What each section of the page shows, from the material and the decision."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.manifest import Manifest
from densenet_deploy.parity.compare import Parity
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.evaluate import ClassResult, EvaluateReport
from densenet_deploy.workflows.html_report.decide import Decision, file_of, runs_on
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import (
    FileFacts,
    Interval,
    Loaded,
    Material,
    ModelSummary,
    ReportSources,
    Trial,
    Tuning,
)
from densenet_deploy.workflows.html_report.page import (
    Block,
    Cell,
    Commands,
    Facts,
    Headline,
    Page,
    Remarks,
    Section,
    Table,
    table,
)
from densenet_deploy.workflows.quantize.quantize import QuantizeReport

_UNKNOWN: Final = "–"
_MIB: Final = 2**20
_WORST: Final = 10
_PROGRAM: Final = "densenet-deploy"


def page_of(material: Material, decision: Decision, out: Path, description: str, made_by: str) -> Page:
    """Return the page; `out` is where it will be, which its own command names."""
    figures = Figures(material)
    sections = (
        _pareto(material, figures),
        _latency(material),
        _accuracy(material),
        _parity(material, figures),
        _calibration(material),
        _precision(material),
        _network(material, figures),
        _provenance(material),
        _reproduce(material, out),
    )
    names = ", ".join(model.name for model in material.models)
    return Page(f"Report on {names}", description, _headline(decision), sections, made_by)


def _headline(decision: Decision) -> Headline:
    if not decision.model:
        return Headline("No model to recommend yet", "", decision.reasons, (), decision.cautions)
    if decision.path is None:  # no command could be run with it here
        return Headline("Ship", decision.model, decision.reasons, _numbers(decision), decision.cautions)
    backend = ["--backend", decision.backend] if decision.backend else []
    command = shlex.join([_PROGRAM, "run", str(decision.path), *backend])
    return Headline(
        "Ship", decision.model, decision.reasons, _numbers(decision), decision.cautions, [f"{command} IMAGE"]
    )


def _numbers(decision: Decision) -> list[tuple[str, str, str]]:
    """The few numbers that matter, as far as they are known."""
    numbers = []
    if decision.latency_ms is not None:
        interval = decision.interval_ms and " to ".join(map(milliseconds, decision.interval_ms))
        numbers.append(
            ("median call", f"{milliseconds(decision.latency_ms)} ms", (interval and f"95 %: {interval}") or "")
        )
    if decision.top1 is not None:
        numbers.append(("top-1", _percent(decision.top1), ""))
    if decision.memory_bytes is not None:
        numbers.append(("peak memory", f"{_mib(decision.memory_bytes)} MiB", "of the process"))
    if decision.file_bytes is not None:
        numbers.append(("on disk", f"{_mib(decision.file_bytes)} MiB", decision.precision))
    return numbers


# Cells


def _text(value: object, *, code: bool = False) -> Cell:
    shown = str(value or _UNKNOWN)
    return Cell(shown, shown.lower(), code=code)


def _number(value: float | None, form: Callable[[float], str] = "{:,.0f}".format) -> Cell:
    return Cell(_UNKNOWN, tone="quiet") if value is None else Cell(form(value), value)


def _name(path: str) -> Cell:
    """The file name without its folder; no two models share it."""
    return _text(path.rpartition("/")[2])


def _percent(value: float) -> str:
    return f"{value:.2%}".replace("%", " %")


def _mib(value: float) -> str:
    return f"{value / _MIB:,.1f}"


_decibels: Final = "{:.1f}".format


def _timed(median: float | None, interval: Interval | None, longest: float) -> Cell:
    """A time with its interval, which is drawn too, on an axis from 0 to `longest`."""
    if median is None:
        return _number(None)
    low, high = interval or (median, median)
    shown = milliseconds(median) + (f" [{milliseconds(low)}, {milliseconds(high)}]" if interval else "")
    return Cell(shown, median, (low / longest, median / longest, high / longest))


def _longest(spans: Iterable[tuple[float | None, Interval | None]]) -> float:
    """The end of an axis that holds all of them."""
    return max((interval[1] if interval else median or 0.0 for median, interval in spans), default=0.0) or 1.0


def _remarks(sentences: Iterable[str]) -> list[Block]:
    listed = list(sentences)
    return [Remarks(listed)] if listed else []


def _made_by(command: str, *arguments: object, missing: str = "There are no data for this section yet") -> Commands:
    """Say what is `missing`, which command makes it, and which option takes its output."""
    line = shlex.join([_PROGRAM, command, *map(str, arguments), "--json"])
    lead = f"{missing}. This command makes them; give its output with --{command} {command}.json."
    return Commands([f"{line} > {command}.json"], lead)


# Sections about measurements


def _pareto(material: Material, figures: Figures) -> Section:
    lead = "A model is on the front if no other model here is both faster and more accurate."
    blocks = figures.pareto()
    for tuning in material.tunings:
        blocks += [_front(tuning)] if tuning.report.pareto else []
        blocks += _machine(tuning, material)
    if not blocks:
        missing = (
            "This section needs latency and accuracy of the same models: from tune, or from benchmark and evaluate"
        )
        blocks = [_made_by("tune", *(material.float_models or [Path("FP32_MODEL.onnx")]), missing=missing)]
    return Section("pareto", "Speed and accuracy", lead, blocks)


def _front(tuning: Loaded[Tuning]) -> Table:
    trials, chosen = tuning.report.shown, tuning.report.chosen
    longest = _longest((trial.latency_ms, trial.interval_ms) for trial in trials)

    def model(trial: Trial) -> Cell:
        name = trial.model.rpartition("/")[2]
        return Cell(f"{name} (chosen)", name.lower(), tone="good") if trial.is_same(chosen) else _text(name)

    goals = "latency, throughput, answers, memory and file size"
    return table(
        f"The Pareto front that tune found ({tuning.name}), by {goals}",
        trials,
        {
            "model": model,
            "runs on": lambda trial: _text(runs_on(trial.backend, trial.threads, trial.batch)),
            "ms per call [95 %]": lambda trial: _timed(trial.latency_ms, trial.interval_ms, longest),
            "top-1": lambda trial: _number(trial.top1, _percent),
            "points lost": lambda trial: _number(trial.drop_points, "{:.2f}".format),
            "SQNR dB": lambda trial: _sqnr(trial.parity),
            "MiB": lambda trial: _number(trial.peak_memory_bytes, _mib),
        },
    )


def _latency(material: Material) -> Section:
    lead = (
        "The median call with its 95 % interval, drawn on an axis from 0 ms. A wide interval means an unreliable "
        "measurement."
    )
    blocks: list[Block] = []
    for benchmark in material.benchmarks:
        found = benchmark.report.results
        for scenario, batch in dict.fromkeys((result.scenario, result.batch) for result in found):
            results = [result for result in found if (result.scenario, result.batch) == (scenario, batch)]
            blocks.append(_latencies(f"{scenario}, batch {batch} ({benchmark.name})", results, material))
        blocks += [*_machine(benchmark, material), *_remarks(_notes(benchmark.report))]
    return Section(
        "latency", "Latency", lead, blocks or [_made_by("benchmark", *(model.path for model in material.models))]
    )


def _latencies(caption: str, results: Sequence[Measurement], material: Material) -> Table:
    longest = _longest((result.median_ms, result.interval_ms) for result in results)

    def model(result: Measurement) -> Cell:
        name = result.model.rpartition("/")[2]
        return Cell(f"{name} (since changed)", name.lower(), tone="bad") if material.is_stale(result) else _text(name)

    columns: dict[str, Callable[[Measurement], Cell]] = {
        "model": model,
        "runs on": lambda result: _text(_place(result)),
        "precision": lambda result: _text(result.precision),
        "ms per call [95 %]": lambda result: _timed(result.median_ms, result.interval_ms, longest),
        "p90": lambda result: _number(result.latency_ms.p90, milliseconds),
        "p99": lambda result: _number(result.latency_ms.p99, milliseconds),
        "images/s": lambda result: _number(result.images_per_second, "{:,.1f}".format),
        "MiB": lambda result: _number(result.peak_memory_bytes, _mib),
        "GPU MiB": lambda result: _number(result.device_memory_bytes, _mib),
        "frames missed": lambda result: _number(None if result.camera is None else result.camera.missed, _percent),
        "load ms": lambda result: _number(result.load_ms),
        "first ms": lambda result: _number(result.first_ms, milliseconds),
    }
    if all(result.device_memory_bytes is None for result in results):
        del columns["GPU MiB"]
    if all(result.camera is None for result in results):
        del columns["frames missed"]
    return table(caption, results, columns)


def _place(result: Measurement) -> str:
    threads = f"{result.threads} thread{'' if result.threads == 1 else 's'}"
    streams = "" if result.streams == 1 else f"{result.streams} streams"
    device = "" if result.device == "cpu" else result.device
    return ", ".join(filter(None, (result.backend, device, streams, threads)))


def _notes(report: BenchmarkReport) -> list[str]:
    return [*(f"failed: {one}" for one in report.failed), *report.notes]


def _machine(run: Loaded[Any], material: Material) -> list[Block]:
    """The machine of a run: in full, or the name of the earlier report with the same one."""
    machine = run.report.machine
    if machine is None:
        return []
    pairs = _machine_facts(machine)
    runs: list[Loaded[Any]] = [*material.tunings, *material.benchmarks]
    for earlier in runs[: next(place for place, one in enumerate(runs) if one is run)]:
        if earlier.report.machine is not None and _machine_facts(earlier.report.machine) == pairs:
            pairs = [("processor, software", f"as in {earlier.name}, above")]
            break
    clock = "" if machine.cpu_mhz is None else f"{machine.cpu_mhz:,.0f} MHz"
    moment = (("clock", clock), ("date", machine.date))
    return [Facts([*pairs, *(pair for pair in moment if pair[1])], "The machine")]


def _machine_facts(machine: Machine) -> list[tuple[str, str]]:
    quota = "" if machine.cpu_quota is None else f", quota {machine.cpu_quota:g}"
    gpus = "; ".join(", driver ".join(filter(None, (gpu.name, gpu.driver))) for gpu in machine.gpus)
    versions = (f"{name} {version}" for name, version in machine.versions.items())
    pairs = [
        ("processor", f"{machine.cpu}, {machine.usable_cpus} usable CPUs{quota}"),
        ("graphics", gpus or "no NVIDIA GPU"),
        ("system", machine.system),
        ("software", ", ".join([f"Python {machine.python}", *versions])),
    ]
    return [pair for pair in pairs if pair[1]]


def _accuracy(material: Material) -> Section:
    lead = (
        "Measured on labelled images. The calibration error is the mean distance between a model's confidence and how "
        "often it is right."
    )
    evaluations = [loaded.report for loaded in material.evaluations]
    blocks: list[Block] = [_evaluated(evaluations)] if evaluations else []
    blocks += [_tuned_accuracy(tuning, trials) for tuning in material.tunings if (trials := _with_top1(tuning))]
    if not blocks:
        blocks = [_made_by("evaluate", material.models[0].path, "--data", "FOLDER")]
    blocks += _mistakes(evaluations)
    notes = dict.fromkeys(note for found in evaluations for note in found.notes)
    return Section("accuracy", "Accuracy", lead, [*blocks, *_remarks(notes)])


def _evaluated(found: Sequence[EvaluateReport]) -> Table:
    def agreement(one: EvaluateReport) -> Cell:
        if one.against is None or one.against.top1_agreement is None:
            return _number(None)
        agreed = one.against.top1_agreement
        return Cell(f"{one.against.model.rpartition('/')[2]}: {_percent(agreed)}", agreed)

    return table(
        "Accuracy",
        found,
        {
            "model": lambda one: _name(one.model),
            "ran on": lambda one: _text(", ".join(filter(None, (one.backend, one.precision)))),
            "top-1": lambda one: _number(one.top1, _percent),
            "top-5": lambda one: _number(one.top5, _percent),
            "calibration error": lambda one: _number(one.calibration_error, _percent),
            "images": lambda one: _number(one.count),
            "unreadable": lambda one: _number(len(one.bad)),
            "same answer as": agreement,
        },
    )


def _with_top1(tuning: Loaded[Tuning]) -> list[Trial]:
    """One candidate for each file and backend whose top-1 was measured."""
    found = tuning.report.candidates or tuning.report.pareto
    measured = (trial for trial in found if trial.top1 is not None)
    return list({(trial.model, trial.backend): trial for trial in measured}.values())


def _tuned_accuracy(tuning: Loaded[Tuning], trials: Sequence[Trial]) -> Table:
    return table(
        f"Accuracy as tune measured it ({tuning.name})",
        trials,
        {
            "model": lambda one: _name(one.model),
            "ran on": lambda one: _text(", ".join(filter(None, (one.backend, one.precision)))),
            "top-1": lambda one: _number(one.top1, _percent),
            "points lost": lambda one: _number(one.drop_points, "{:.2f}".format),
        },
    )


def _mistakes(found: Sequence[EvaluateReport]) -> list[Block]:
    """The weakest classes and the most frequent confusions of every model, folded."""
    weak = [(one.model, part) for one in found for part in _weakest(one)]
    wrong = [(one.model, *mistake) for one in found for mistake in _confusions(one)]
    caption, blocks = f"At most {_WORST} per model", list[Block]()
    if weak:
        columns: dict[str, Callable[..., Cell]] = {
            "model": lambda row: _name(row[0]),
            "class": lambda row: _text(_class_name(row[1].label, row[1].index)),
            "top-1": lambda row: _number(row[1].top1, _percent),
            "images": lambda row: _number(row[1].count),
        }
        blocks.append(table(caption, weak, columns, "Weakest classes"))
    if wrong:
        columns = {
            "model": lambda row: _name(row[0]),
            "class": lambda row: _text(row[1]),
            "classified as": lambda row: _text(row[2]),
            "times": lambda row: _number(row[3]),
        }
        blocks.append(table(caption, wrong, columns, "Most frequent confusions"))
    return blocks


def _weakest(report: EvaluateReport) -> list[ClassResult]:
    return sorted((one for one in report.classes if one.right < one.count), key=lambda one: one.top1)[:_WORST]


def _confusions(report: EvaluateReport) -> list[tuple[str, str, int]]:
    """Class, predicted class and how often, the most frequent first."""
    labels = {one.index: one.label for one in report.classes} | dict(enumerate(report.labels))
    wrong = sorted((one for one in report.confusion if one.truth != one.predicted), key=lambda one: -one.count)
    return [
        (
            _class_name(labels.get(one.truth), one.truth),
            _class_name(labels.get(one.predicted), one.predicted),
            one.count,
        )
        for one in wrong[:_WORST]
    ]


def _class_name(label: str | None, index: int) -> str:
    return label or f"class {index}"


# Sections about precision


def _sqnr(parity: Parity | None) -> Cell:
    if parity is None:
        return _number(None)
    return Cell("∞", math.inf) if parity.sqnr_db == math.inf else _number(parity.sqnr_db, _decibels)


def _parity(material: Material, figures: Figures) -> Section:
    lead = (
        "How far a model's outputs are from its reference's. 40 dB SQNR means the error amplitude is 1 % of the "
        "signal. The centred SQNR leaves out each output's mean over the images: it measures what the image changes."
    )
    validations = [loaded.report for loaded in material.validations]
    blocks: list[Block] = [_validated(validations)] if validations else []
    blocks += [block for validation in validations for block in _layers_apart(validation)]
    for found in material.sensitivities:
        data = found.report.plot_data
        blocks += [figures.sensitivity(data), _sensitivity(data)]
    first, *others = (model.path for model in material.models)
    if not material.validations:
        blocks.insert(0, _made_by("validate", first, *(others[:1] or [Path("OTHER_MODEL")]), "--per-layer"))
    if not material.sensitivities:
        missing = "There are no data yet on what each layer costs in INT8"
        blocks.append(_made_by("sensitivity", _float_model(material), "--calibration", "FOLDER", missing=missing))
    return Section("parity", "Parity and SQNR", lead, blocks)


def _float_model(material: Material) -> Path:
    """The model to quantize: an FP32 file, or else the first."""
    return [*material.float_models, material.models[0].path][0]


def _validated(validations: Sequence[ComparisonReport]) -> Table:
    def verdict(one: ComparisonReport) -> Cell:
        if one.passed is None:
            return Cell("no gate", "no gate", tone="quiet")
        if one.passed:
            return Cell("passed", "passed", tone="good")
        return Cell(f"missed: {'; '.join(one.failed)}", "missed", tone="bad")

    columns: dict[str, Callable[[ComparisonReport], Cell]] = {
        "model": lambda one: _name(file_of(one.candidate)),
        "reference": lambda one: _name(file_of(one.reference)),
        "SQNR dB": lambda one: _sqnr(one.parity),
        "centred SQNR dB": lambda one: _number(one.parity.centred_sqnr_db, _decibels),
        "cosine": lambda one: _number(one.parity.cosine, "{:.6f}".format),
        "max |Δ|": lambda one: _number(one.parity.max_abs, "{:.3g}".format),
        "same top-1": lambda one: _number(one.parity.top1_agreement, _percent),
        "gates": verdict,
        "ran on": lambda one: _text(_described_place(one.candidate)),
        "reference ran on": lambda one: _text(_described_place(one.reference)),
    }
    if all(one.parity.centred_sqnr_db is None for one in validations):
        del columns["centred SQNR dB"]
    return table("Parity of outputs", validations, columns)


def _described_place(described: str) -> str:
    """Backend with version, device and precision; neither the provider nor the number of threads."""
    words = described.removeprefix(f"{file_of(described)}: ").split(", ")
    kept = [word for word in words if not word.endswith(("ExecutionProvider", " thread", " threads"))]
    return ", ".join({word.lower(): word for word in kept}.values())


def _layers_apart(validation: ComparisonReport) -> list[Block]:
    if not validation.worst_layers:
        return _remarks(validation.notes)
    name, layers = file_of(validation.candidate).rpartition("/")[2], validation.worst_layers
    diverges = f"; the first to miss a gate is {validation.first_divergence}" if validation.first_divergence else ""
    found = table(
        f"The {len(layers)} layers of {name} that differ most from the reference{diverges}",
        layers,
        {
            "layer": lambda layer: _text(layer.name),
            "SQNR dB": lambda layer: _sqnr(layer.parity),
            "cosine": lambda layer: _number(layer.parity.cosine, "{:.6f}".format),
            "max |Δ|": lambda layer: _number(layer.parity.max_abs, "{:.3g}".format),
        },
        f"Layer by layer: {name}",
    )
    return [found, *_remarks(validation.notes)]


def _sensitivity(data: SensitivityData) -> Table:
    whole = data.whole.sqnr_db
    return table(
        f"{data.title}; everything in INT8: {whole:.1f} dB",
        data.rows,
        {
            "layer or block": lambda row: _text(row.name, code=True),
            "SQNR dB, only this in INT8": lambda row: _number(row.only_int8.sqnr_db, _decibels),
            "SQNR dB, only this in FP32": lambda row: _number(row.only_float.sqnr_db, _decibels),
            "gain dB": lambda row: _number(row.only_float.sqnr_db - whole, _decibels),
            "top-1, only this in INT8": lambda row: _number(row.only_int8.top1, _percent),
        },
        "The same in numbers",
    )


def _calibration(material: Material) -> Section:
    lead = "INT8 takes its ranges from calibration images: how many there were, and which layers stayed in FP32."
    recipes = [(model.name, model.manifest.recipe) for model in material.models if model.manifest is not None]
    written = [(name, f"recipe {recipe}, as recorded in the file") for name, recipe in recipes if recipe is not None]
    blocks: list[Block] = [Facts(written)] if written else []
    if material.quantizations:
        blocks += _calibrated([loaded.report for loaded in material.quantizations])
    else:
        blocks.append(_made_by("quantize", _float_model(material), "--calibration", "FOLDER"))
    return Section("calibration", "Calibration", lead, blocks)


def _calibrated(quantizations: Sequence[QuantizeReport]) -> list[Block]:
    found = table(
        "Calibration of each model",
        quantizations,
        {
            "model": lambda one: _name(str(one.onnx or "in memory")),
            "images": lambda one: _number(one.calibrated_on),
            "recipe": lambda one: _text(one.recipe),
            "weight bits": lambda one: _number(one.weight_bits),
            "INT8 layers": lambda one: _number(one.layers_int8),
            "FP32 layers": lambda one: _number(one.layers_float),
            "SQNR dB on them": lambda one: _sqnr(one.parity),
            "speed": lambda one: _text(one.speed or "not measured"),
        },
    )
    kept = [f"{one.onnx}: FP32 layers: {', '.join(one.float_layers)}" for one in quantizations if one.float_layers]
    notes = [f"{one.onnx}: {note}" for one in quantizations for note in one.notes]
    return [found, *_remarks([*kept, *notes])]


def _precision(material: Material) -> Section:
    lead = "In which precision convolutions and matrix products compute: as the file says, and as the backend reports."

    def ran_in(model: ModelSummary) -> Cell:
        results = (one for one in material.results if model.is_called(one.model) and one.sha256 == model.sha256)
        return _text(", ".join(dict.fromkeys(f"{one.precision} ({one.backend})" for one in results)))

    found = table(
        "Precision",
        material.models,
        {
            "model": lambda model: _text(model.name),
            "precision": lambda model: _text(model.precision),
            "layers compute in": lambda model: _text(
                ", ".join(f"{count} {kind}" for kind, count in model.counts.items())
            ),
            "ran in": ran_in,
            "source": lambda model: _text(model.evidence),
        },
    )
    layers = [_layers(model) for model in material.models if model.layers]
    return Section("precision", "Precision of each layer", lead, [found, *layers])


def _layers(model: ModelSummary) -> Table:
    return table(
        f"Layers of {model.name}",
        model.layers,
        {
            "layer": lambda layer: _text(layer.name, code=True),
            "operator": lambda layer: _text(layer.operator),
            "computes in": lambda layer: _text(layer.precision),
        },
        f"All {len(model.layers)} layers of {model.name}",
    )


# Sections about the files


def _network(material: Material, figures: Figures) -> Section:
    lead = "What the architecture costs, how its features grow, and how they are reused."
    known = next((model.architecture for model in material.models if model.architecture is not None), None)
    blocks: list[Block] = []
    if known is not None:
        size = f"{known.image_size} × {known.image_size} pixels"
        pairs = [("parameters", f"{known.parameters:,}"), ("MACs per image", f"{known.macs:,}"), ("image", size)]
        blocks.append(Facts(pairs))
    return Section("network", "The network", lead, [*blocks, *figures.of_network()])


def _provenance(material: Material) -> Section:
    lead = "The SHA-256 of every file that this page is about, and what the models record about themselves."
    blocks: list[Block] = [_files("Models", [file for model in material.models for file in model.files])]
    if material.inputs:
        blocks.append(_files("Reports behind this page", material.inputs))
    return Section("provenance", "Provenance", lead, [*blocks, *_origins(material.models)])


def _files(caption: str, files: Sequence[FileFacts]) -> Table:
    return table(
        caption,
        files,
        {
            "file": lambda file: _text(file.path),
            "bytes": lambda file: _number(file.bytes),
            "SHA-256": lambda file: _text(file.sha256, code=True),
        },
    )


def _origins(models: Sequence[ModelSummary]) -> Iterator[Facts]:
    """What models record, once for those with the same facts, as files made from one another have."""
    known = [(model.name, _origin(model.manifest)) for model in models if model.manifest is not None]
    while known:
        pairs = known[0][1]
        yield Facts(pairs, ", ".join(name for name, others in known if others == pairs))
        known = [(name, others) for name, others in known if others != pairs]


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    weights = manifest.weights
    seed = "" if weights.seed is None else f", random, seed {weights.seed}"
    return [
        ("variant", manifest.variant),
        ("weights", f"{weights.source}{seed}"),
        ("SHA-256 of the weights", weights.sha256),
        ("input", str(manifest.preprocessing)),
        ("labels", str(len(manifest.labels)) if manifest.labels else "none"),
        ("batch", "dynamic" if manifest.batch is None else str(manifest.batch)),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())),
    ]


def _reproduce(material: Material, out: Path) -> Section:
    lead = "The command lines that the reports record, and the one that made this page."
    recorded = [line for loaded in material.reports if (line := _recorded(loaded))]
    chosen = [loaded.report.chosen for loaded in material.tunings]
    recorded += [trial.command for trial in chosen if trial is not None and trial.command]
    blocks = [Commands(list(dict.fromkeys(recorded)), "The measurements.")] if recorded else []
    return Section(
        "reproduce", "Reproduce", lead, [*blocks, Commands([_own_command(material.sources, out)], "This page.")]
    )


def _recorded(loaded: Loaded[Any]) -> str:
    """The command line of a report; empty where it records none, as reports made in Python or by older versions."""
    if not loaded.report.argv:
        return ""
    first, *words = loaded.report.argv
    words = words if Path(first).name in (_PROGRAM, "cli.py", "__main__.py") else [first, *words]
    to_file = f" > {shlex.quote(str(loaded.path))}" if "--json" in words else ""
    return shlex.join([_PROGRAM, *words]) + to_file


def _own_command(sources: ReportSources, out: Path) -> str:
    words = [_PROGRAM, "report", *map(str, sources.models), "-o", str(out)]
    for option, paths in sources.by_option().items():
        words += [word for path in paths for word in (option, str(path))]
    if sources.max_drop != ReportSources(sources.models).max_drop:
        words += ["--max-drop", f"{sources.max_drop:g}"]
    return shlex.join(words)

"""What each section of the page shows, from the material and the decision."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.workflows.html_report.accuracy_section import (
    accuracy_cell,
    accuracy_name,
    accuracy_section,
    accuracy_text,
)
from densenet_deploy.workflows.html_report.decide import Decision, runs_on
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import Loaded, Material, ReportSources, is_same_trial
from densenet_deploy.workflows.html_report.model_sections import (
    calibration_section,
    network_section,
    parity_section,
    precision_section,
    provenance_section,
    sqnr_cell,
)
from densenet_deploy.workflows.html_report.page import (
    PROGRAM,
    Block,
    Cell,
    Commands,
    Facts,
    Headline,
    Page,
    Section,
    Table,
    axis_end,
    made_by,
    mib,
    number_cell,
    percent,
    remarks,
    table,
    text_cell,
    time_cell,
)
from densenet_deploy.workflows.tune.report import TrialResult, TuneReport


def page_of(material: Material, decision: Decision, out: Path, description: str, made_by: str) -> Page:
    """Return the page; `out` is where it will be, which its own command names."""
    figures = Figures(material)
    sections = (
        _pareto(material, figures),
        _latency(material),
        accuracy_section(material),
        parity_section(material, figures),
        calibration_section(material),
        precision_section(material),
        network_section(material, figures),
        provenance_section(material),
        _reproduce(material, out),
    )
    names = ", ".join(model.name for model in material.models)
    return Page(f"Report on {names}", description, _headline(decision), sections, made_by)


def _headline(decision: Decision) -> Headline:
    if not decision.model:
        return Headline("No model to recommend yet", "", decision.reasons, (), decision.cautions)
    commands = []
    if decision.path is not None:  # otherwise no command could be run with it here
        backend = ["--backend", decision.backend] if decision.backend else []
        commands.append(f"{shlex.join([PROGRAM, 'run', str(decision.path), *backend])} IMAGE")
    return Headline("Ship", decision.model, decision.reasons, _numbers(decision), decision.cautions, commands)


def _numbers(decision: Decision) -> list[tuple[str, str, str]]:
    """The few numbers that matter, as far as they are known."""
    numbers = []
    if decision.latency_ms is not None:
        interval = decision.interval_ms and " to ".join(map(milliseconds, decision.interval_ms))
        numbers.append(
            ("median call", f"{milliseconds(decision.latency_ms)} ms", (interval and f"95 %: {interval}") or "")
        )
    if decision.accuracy is not None:
        numbers.append((decision.accuracy.name, accuracy_text(decision.accuracy), ""))
    if decision.memory_bytes is not None:
        numbers.append(("peak memory", f"{mib(decision.memory_bytes)} MiB", "of the process"))
    if decision.file_bytes is not None:
        numbers.append(("on disk", f"{mib(decision.file_bytes)} MiB", decision.precision))
    return numbers


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
        blocks = [made_by("tune", *(material.float_models or [Path("FP32_MODEL.onnx")]), missing=missing)]
    return Section("pareto", "Speed and accuracy", lead, blocks)


def _front(tuning: Loaded[TuneReport]) -> Table:
    trials, chosen = tuning.report.pareto, tuning.report.chosen
    longest = axis_end((trial.latency_ms, trial.interval_ms) for trial in trials)

    def model(trial: TrialResult) -> Cell:
        name = trial.model.name
        return Cell(f"{name} (chosen)", name.lower(), tone="good") if is_same_trial(trial, chosen) else text_cell(name)

    goals = "latency, throughput, answers, memory and file size"
    return table(
        f"The Pareto front that tune found ({tuning.name}), by {goals}",
        trials,
        {
            "model": model,
            "runs on": lambda trial: text_cell(runs_on(trial.backend, trial.threads, trial.batch)),
            "ms per call [95 %]": lambda trial: time_cell(trial.latency_ms, trial.interval_ms, longest),
            accuracy_name(trials): accuracy_cell,
            "points lost": lambda trial: number_cell(trial.drop_points, "{:.2f}".format),
            "SQNR dB": lambda trial: sqnr_cell(trial.parity),
            "MiB": lambda trial: number_cell(trial.peak_memory_bytes, mib),
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
        notes = [*(f"failed: {one}" for one in benchmark.report.failed), *benchmark.report.notes]
        blocks += [*_machine(benchmark, material), *remarks(notes)]
    blocks = blocks or [made_by("benchmark", *(model.path for model in material.models))]
    return Section("latency", "Latency", lead, blocks)


def _latencies(caption: str, results: Sequence[Measurement], material: Material) -> Table:
    longest = axis_end((result.median_ms, result.interval_ms) for result in results)

    def model(result: Measurement) -> Cell:
        name = result.model.rpartition("/")[2]
        return (
            Cell(f"{name} (since changed)", name.lower(), tone="bad") if material.is_stale(result) else text_cell(name)
        )

    columns: dict[str, Callable[[Measurement], Cell]] = {
        "model": model,
        "runs on": lambda result: text_cell(_place(result)),
        "precision": lambda result: text_cell(result.precision),
        "ms per call [95 %]": lambda result: time_cell(result.median_ms, result.interval_ms, longest),
        "p90": lambda result: number_cell(result.latency_ms.p90, milliseconds),
        "p99": lambda result: number_cell(result.latency_ms.p99, milliseconds),
        "images/s": lambda result: number_cell(result.images_per_second, "{:,.1f}".format),
        "MiB": lambda result: number_cell(result.peak_memory_bytes, mib),
        "GPU MiB": lambda result: number_cell(result.device_memory_bytes, mib),
        "frames missed": lambda result: number_cell(None if result.camera is None else result.camera.missed, percent),
        "load ms": lambda result: number_cell(result.load_ms),
        "first ms": lambda result: number_cell(result.first_ms, milliseconds),
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


def _reproduce(material: Material, out: Path) -> Section:
    lead = "The command lines that the reports record, and the one that made this page."
    recorded = [line for loaded in material.reports if (line := _recorded(loaded))]
    chosen = [loaded.report.chosen for loaded in material.tunings]
    recorded += [trial.command for trial in chosen if trial is not None]
    blocks: list[Block] = [Commands(list(dict.fromkeys(recorded)), "The measurements.")] if recorded else []
    blocks.append(Commands([_own_command(material.sources, out)], "This page."))
    return Section("reproduce", "Reproduce", lead, blocks)


def _recorded(loaded: Loaded[Any]) -> str:
    """The command line of a report; empty where it records none, as reports made in Python or by older versions."""
    if not loaded.report.argv:
        return ""
    to_file = f" > {shlex.quote(str(loaded.path))}" if "--json" in loaded.report.argv else ""
    return shlex.join(loaded.report.argv) + to_file


def _own_command(sources: ReportSources, out: Path) -> str:
    words = [PROGRAM, "report", *sources.paths, "-o", str(out)]
    for option, paths in sources.by_option().items():
        words += [word for path in paths for word in (option, str(path))]
    if sources.max_drop != ReportSources.max_drop:
        words += ["--max-drop", f"{sources.max_drop:g}"]
    return shlex.join(words)

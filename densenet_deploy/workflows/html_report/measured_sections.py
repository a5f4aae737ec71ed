"""Sections of what was measured: Pareto front, latency, accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.report.page import Block, Cell, Column, Facts, Section, Table
from densenet_deploy.workflows.html_report import cells
from densenet_deploy.workflows.html_report.commands import float_models
from densenet_deploy.workflows.html_report.decision import is_stale, runs_on
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.inputs import Accuracy, Benchmark, MachineFacts, Measured
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.parts import count, file_name, made_by, remarks
from densenet_deploy.workflows.html_report.tuning import Tuning

_WORST_CLASSES: Final = 10


def pareto_section(material: Material, figures: Figures) -> Section:
    """Latency against accuracy: the figure, and what `tune` kept."""
    lead = "Worth a look is a model that no other beats in both speed and accuracy."
    blocks = figures.pareto()
    for tuning in material.tunings:
        blocks += [_front(tuning)] if tuning.pareto else []
        blocks += _machine_blocks(tuning, material)
    if not blocks:
        missing = "It takes latency and accuracy of the same models: from tune, or from both benchmark and evaluate"
        blocks = [made_by("tune", *(float_models(material.models) or [Path("FLOAT_MODEL.onnx")]), missing=missing)]
    return Section("pareto", "Speed and accuracy", lead, blocks)


def latency_section(material: Material) -> Section:
    """A table and the machine for every benchmark."""
    lead = "The median call with its 95 % interval, drawn from 0 ms at the left. A wide bar is a figure to doubt."
    blocks: list[Block] = []
    for benchmark in material.benchmarks:
        blocks += _latency_blocks(benchmark, material)
    if not blocks:
        blocks = [made_by("benchmark", *(model.path for model in material.models))]
    return Section("latency", "Latency", lead, blocks)


def accuracy_section(material: Material) -> Section:
    """Top-1 and top-5 side by side, then what each model gets wrong."""
    lead = "On labelled figures. The calibration error says how far a model's confidence is from how often it is right."
    if not material.accuracies:
        return Section("accuracy", "Accuracy", lead, [made_by("evaluate", material.models[0].path, "--data", "FOLDER")])
    blocks: list[Block] = [_accuracy_table(material.accuracies)]
    blocks += _mistakes(material.accuracies)
    notes = dict.fromkeys(note for found in material.accuracies for note in found.notes)
    return Section("accuracy", "Accuracy", lead, [*blocks, *remarks(notes)])


def _front(tuning: Tuning) -> Table:
    longest = cells.longest_of([(trial.interval or (0, trial.latency_ms or 0))[1] for trial in tuning.pareto])
    columns = (
        Column("model"),
        Column("runs on"),
        Column("ms a call [95 %]", numeric=True),
        Column("top-1", numeric=True),
        Column("points lost", numeric=True),
        Column("SQNR dB", numeric=True),
        Column("MiB", numeric=True),
    )
    rows = [
        (
            file_name(trial.model),
            cells.text(runs_on(trial.backend, trial.threads, trial.batch)),
            Cell(cells.UNKNOWN) if trial.latency_ms is None else cells.timed(trial.latency_ms, trial.interval, longest),
            cells.number(trial.top1, cells.percent),
            cells.number(trial.drop_points, cells.fixed(2)),
            cells.number(None if trial.parity is None else trial.parity.sqnr_db, cells.fixed(1)),
            cells.number(trial.memory_bytes, cells.mib),
        )
        for trial in tuning.pareto
    ]
    goals = "latency, throughput, answers, memory and size of the file"
    return Table(f"The Pareto front that tune found ({tuning.path.name}), by {goals}", columns, rows)


def _latency_blocks(benchmark: Benchmark, material: Material) -> list[Block]:
    blocks: list[Block] = []
    for scenario, batch in dict.fromkeys((result.scenario, result.batch) for result in benchmark.results):
        results = [result for result in benchmark.results if (result.scenario, result.batch) == (scenario, batch)]
        blocks.append(_latency_table(f"{scenario}, batch {batch} ({benchmark.path.name})", results, material))
    return [*blocks, *_machine_blocks(benchmark, material), *remarks(benchmark.notes)]


def _latency_table(caption: str, results: Sequence[Measured], material: Material) -> Table:
    longest = cells.longest_of([(result.interval or (0, result.median))[1] for result in results])
    camera = any(result.missed is not None for result in results)
    on_gpu = any(result.device_memory_bytes is not None for result in results)
    columns = [
        Column("model"),
        Column("runs on"),
        Column("in"),
        Column("ms a call [95 %]", numeric=True),
        Column("p90", numeric=True),
        Column("p99", numeric=True),
        Column("images/s", numeric=True),
        Column("MiB", numeric=True),
        *([Column("GPU MiB", numeric=True)] if on_gpu else []),
        *([Column("frames missed", numeric=True)] if camera else []),
        Column("load ms", numeric=True),
        Column("first ms", numeric=True),
    ]
    rows = [
        (
            _measured_model(result, material),
            cells.text(_place(result)),
            cells.text(result.precision),
            cells.timed(result.median, result.interval, longest),
            cells.number(result.p90, cells.milliseconds),
            cells.number(result.p99, cells.milliseconds),
            cells.number(result.images_per_second, cells.fixed(1)),
            cells.number(result.memory_bytes, cells.mib),
            *([cells.number(result.device_memory_bytes, cells.mib)] if on_gpu else []),
            *([cells.number(result.missed, cells.percent)] if camera else []),
            cells.number(result.load_ms, cells.fixed(0)),
            cells.number(result.first_ms, cells.milliseconds),
        )
        for result in results
    ]
    return Table(caption, columns, rows)


def _measured_model(result: Measured, material: Material) -> Cell:
    name = result.model.rpartition("/")[2]
    if is_stale(result, material.models):
        return Cell(f"{name} (since changed)", name.lower(), tone="bad")
    return cells.text(name)


def _place(result: Measured) -> str:
    threads = "" if result.threads is None else f"{result.threads} thread{'' if result.threads == 1 else 's'}"
    streams = "" if result.streams == 1 else f"{result.streams} streams"
    device = "" if result.device == "cpu" else result.device
    return ", ".join(filter(None, (result.backend, device, streams, threads)))


def _machine_blocks(run: Tuning | Benchmark, material: Material) -> list[Block]:
    """The machine of a run in full; what only repeats an earlier run's, in a word."""
    if run.machine is None:
        return []
    runs: list[Tuning | Benchmark] = [*material.tunings, *material.benchmarks]
    pairs = _described(run.machine)
    for one in itertools.takewhile(lambda one: one is not run, runs):
        if one.machine is not None and _described(one.machine) == pairs:
            same = f"the same as that of {one.path.name}, above"
            return [Facts(_dated([("processor, software", same)], run.machine), "The machine")]
    return [Facts(_dated(pairs, run.machine), "The machine")]


def _described(machine: MachineFacts) -> list[tuple[str, str]]:
    quota = "" if machine.quota is None else f", quota {machine.quota:g}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions)
    pairs = [
        ("processor", f"{machine.cpu}, {machine.usable_cpus} usable CPUs{quota}"),
        ("graphics", "; ".join(machine.gpus) or "no NVIDIA GPU"),
        ("system", machine.system),
        ("software", f"Python {machine.python}, {versions}"),
    ]
    return [pair for pair in pairs if pair[1]]


def _dated(pairs: list[tuple[str, str]], machine: MachineFacts) -> list[tuple[str, str]]:
    """Add what differs from run to run."""
    clock = "" if machine.mhz is None else f"{machine.mhz:,.0f} MHz"
    return [*pairs, *(pair for pair in (("clock", clock), ("date", machine.date)) if pair[1])]


def _accuracy_table(found: Sequence[Accuracy]) -> Table:
    columns = (
        Column("model"),
        Column("ran on"),
        Column("top-1", numeric=True),
        Column("top-5", numeric=True),
        Column("calibration error", numeric=True),
        Column("figures", numeric=True),
        Column("unreadable", numeric=True),
        Column("same answer as", numeric=True),
    )
    rows = [
        (
            file_name(one.model),
            cells.text(f"{one.backend}, {one.precision}"),
            cells.number(one.top1, cells.percent),
            cells.number(one.top5, cells.percent),
            cells.number(one.calibration_error, cells.percent),
            cells.number(one.count, cells.fixed(0)),
            cells.number(one.unreadable, cells.fixed(0)),
            _agreement(one),
        )
        for one in found
    ]
    return Table("Accuracy", columns, rows)


def _agreement(one: Accuracy) -> Cell:
    if one.agreement is None:
        return cells.number(None, cells.percent)
    return Cell(f"{one.against.rpartition('/')[2]}: {cells.percent(one.agreement)}", one.agreement)


def _mistakes(found: Sequence[Accuracy]) -> list[Block]:
    """The weakest classes and the most frequent mistakes of every model, folded."""
    weak = [
        (
            file_name(one.model),
            cells.text(part.name),
            cells.number(part.right / part.count, cells.percent),
            count(part.count),
        )
        for one in found
        for part in sorted(one.classes, key=lambda part: part.right / max(part.count, 1))[:_WORST_CLASSES]
        if part.right < part.count
    ]
    wrong = [
        (file_name(one.model), cells.text(truth), cells.text(answer), count(times))
        for one in found
        for truth, answer, times in one.mistaken[:_WORST_CLASSES]
    ]
    model, figures, times = Column("model"), Column("figures", numeric=True), Column("times", numeric=True)
    tables: list[Block] = []
    if weak:
        columns = (model, Column("class"), Column("top-1", numeric=True), figures)
        tables.append(Table(f"At most {_WORST_CLASSES} of each model", columns, weak, "Weakest classes"))
    if wrong:
        columns = (model, Column("class"), Column("taken for"), times)
        tables.append(Table(f"At most {_WORST_CLASSES} of each model", columns, wrong, "Most frequent mistakes"))
    return tables

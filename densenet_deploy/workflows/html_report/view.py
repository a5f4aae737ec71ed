"""What each section of the page shows, from the material and the advice."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densenet_deploy.analysis.choice import place_of
from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.records import to_plain
from densenet_deploy.reports import Cell, Table, mebibytes, mib, number_cell, percent, table_of, text_cell, time_cell
from densenet_deploy.workflows.decision import Decision, MeasuredCandidate, from_page
from densenet_deploy.workflows.html_report.accuracy_section import accuracy_section
from densenet_deploy.workflows.html_report.against import against_section
from densenet_deploy.workflows.html_report.decide import Advice
from densenet_deploy.workflows.html_report.disagreements import disagreement_blocks
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import Earlier, Loaded, Material, ReportSources
from densenet_deploy.workflows.html_report.model_sections import (
    calibration_section,
    network_section,
    parity_section,
    precision_section,
    provenance_section,
)
from densenet_deploy.workflows.html_report.page import (
    PROGRAM,
    Block,
    Commands,
    Facts,
    Figure,
    Headline,
    Page,
    Section,
    made_by,
    remarks,
)


def page_of(material: Material, advice: Advice, out: Path, description: str, made_by: str) -> Page:
    """Return the page; `out` is where it will be: the paths that it shows are relative to its folder."""
    figures = Figures(material)
    drawn = figures.pareto(advice.decision)
    sections = (
        *against_section(advice, material.earlier),
        _candidates(material, advice, drawn[1:]),
        _latency(material),
        accuracy_section(material, disagreement_blocks(material)),
        parity_section(material, figures),
        calibration_section(material),
        precision_section(material),
        network_section(material, figures),
        provenance_section(material, out),
        _missing(material, out),
        _reproduce(material, out),
    )
    names = ", ".join(model.name for model in material.models)
    earlier = Earlier("", advice.decision, advice.machine)
    return Page(
        f"Report on {names}",
        description,
        _headline(advice, drawn[:1], out),
        [section for section in sections if section.blocks],
        made_by,
        _for_programs(earlier) if advice.decision.candidates else "",
    )


def _for_programs(earlier: Earlier) -> str:
    """The decision as JSON in printable ASCII, whatever the names of files hold."""
    return json.dumps(to_plain(earlier), allow_nan=False).replace("\x7f", "\\u007f")


def _headline(advice: Advice, drawn: Sequence[Figure], out: Path) -> Headline:
    decision, chosen = advice.decision, advice.decision.chosen
    if chosen is None:
        return Headline("No model to recommend yet", "", "", [advice.why_none], (), drawn, advice.cautions)
    commands = []
    if advice.path is not None:  # otherwise no command could be run with it here
        path = from_page(advice.path, out)
        running = ["--backend", chosen.backend, "--threads", str(chosen.threads)]
        commands.append(f"{shlex.join([PROGRAM, 'run', path, *running])} IMAGE")
    reasons = [decision.compared_with, decision.place_in_words]
    answers = _answers(advice, chosen, out)
    return Headline(
        "Ship", chosen.model, ", ".join(decision.headline), reasons, answers, drawn, advice.cautions, commands
    )


def _answers(advice: Advice, chosen: MeasuredCandidate, out: Path) -> list[tuple[str, str, str]]:
    """What a decision needs to know first, as far as it is known."""
    decision, baseline = advice.decision, advice.decision.baseline
    faster, smaller, lost = decision.headline or ("", "", "")
    known = None if baseline is chosen else baseline
    was = "" if known is None else f", was {known.time}"
    size = "" if known is None else f", was {known.size}"
    memory = f"; the process takes {mib(chosen.memory_bytes)}" if chosen.memory_bytes else ""
    answers = [
        ("Which file", chosen.model if advice.path is None else from_page(advice.path, out), chosen.precision),
        ("How fast", faster or f"{milliseconds(chosen.latency_ms)} ms", f"{chosen.time} ms per call{was}"),
        ("How small", smaller or chosen.size, f"{chosen.size}{size}{memory}"),
        ("What is lost", lost or _own_accuracy(chosen), _accuracies(chosen, known)),
    ]
    machine = advice.machine
    place = "" if machine is None else f"{machine.cpu}, {machine.usable_cpus} usable CPUs"
    date = "" if machine is None else f"; {machine.date}"
    gpus = [] if machine is None or chosen.backend == "openvino" else [gpu.name for gpu in machine.gpus]
    answers.append(("On which machine", ", ".join([place or "not recorded", *gpus]), f"{chosen.place}{date}"))
    return answers


def _own_accuracy(chosen: MeasuredCandidate) -> str:
    return "nothing" if chosen.accuracy is not None or chosen.is_given else "not measured"


def _accuracies(chosen: MeasuredCandidate, baseline: MeasuredCandidate | None) -> str:
    if chosen.accuracy is None:
        return ""
    was = "" if baseline is None or baseline.accuracy is None else f", was {baseline.accuracy.shown}"
    return f"{chosen.accuracy}{was}, on {chosen.labelled} images"


def _candidates(material: Material, advice: Advice, drawn: Sequence[Figure]) -> Section:
    """The table that the sentence and the figure are about, and those of earlier tunings."""
    lead = (
        "Candidates whose 95% intervals overlap are as fast as each other: the measurement cannot tell them apart. "
        "Among those as fast as the fastest, better answers decide, then the smaller file, then less memory."
    )
    blocks: list[Block] = [*drawn, *_tables("Candidates", advice.decision)]
    for tuning in material.tunings[:-1]:
        blocks += _tables(f"Candidates of {tuning.name}", tuning.report.decision)
    for tuning in material.tunings:
        failed = [f"{one.title}: {one.outcome}" for one in tuning.report.candidates if one.latency_ms is None]
        blocks += [*remarks(failed), *_machine(tuning, material)]
    return Section("candidates", "Candidates", lead, blocks)


def _tables(caption: str, decision: Decision) -> list[Table]:
    if not decision.candidates:
        return []
    found = [decision.table(caption, decision.shown)]
    others = decision.others
    return [
        *found,
        *([decision.table("Slower ways to run the same files", others, f"{len(others)} more")] if others else []),
    ]


def _missing(material: Material, out: Path) -> Section:
    """What was not measured, with the commands that do."""
    first, *others = (model.name if model.temporary else from_page(model.path, out) for model in material.models)
    plain = from_page([*material.float_models, material.models[0].path][0], out) if material.float_models else first
    models = [first, *others]
    pair = [first, *(["--against", others[0]] if others else [])]
    wanted = [
        (material.tunings or material.benchmarks, made_by("the best file for this machine", "tune", plain)),
        (material.tunings or material.benchmarks, made_by("latency", "benchmark", *models)),
        (
            material.evaluations,
            made_by("accuracy by class, and where models differ", "evaluate", *pair, "--data", "FOLDER"),
        ),
        (
            material.validations,
            made_by("parity of outputs and layers", "validate", first, *(others[:1] or ["OTHER_MODEL"]), "--per-layer"),
        ),
        (
            material.sensitivities,
            made_by("what each layer costs in INT8", "sensitivity", plain, "--calibration", "FOLDER"),
        ),
        (material.quantizations, made_by("how INT8 was calibrated", "quantize", plain, "--calibration", "FOLDER")),
    ]
    blocks: list[Block] = [Commands([line], f"{what}.") for known, (what, line) in wanted if not known]
    lead = "What this page has no data on, the option of report that takes them, and the command that makes them."
    return Section("missing", "Not measured", lead, blocks)


def _latency(material: Material) -> Section:
    lead = (
        "The median call with its 95% interval, drawn on an axis from 0 ms. A wide interval means an unreliable "
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
    return Section("latency", "Latency", lead, blocks)


def _latencies(caption: str, results: Sequence[Measurement], material: Material) -> Table:
    longest = max(result.interval_ms[1] for result in results)

    def model(result: Measurement) -> Cell:
        name = result.model.rpartition("/")[2]
        return (
            Cell(f"{name} (since changed)", name.lower(), tone="bad") if material.is_stale(result) else text_cell(name)
        )

    columns: dict[str, Callable[[Measurement], Cell]] = {
        "model": model,
        "runs on": lambda result: text_cell(_place(result)),
        "precision": lambda result: text_cell(result.precision),
        "ms per call [95%]": lambda result: time_cell(result.median_ms, result.interval_ms, longest),
        "p90": lambda result: number_cell(result.latency_ms.p90, milliseconds),
        "p99": lambda result: number_cell(result.latency_ms.p99, milliseconds),
        "images/s": lambda result: number_cell(result.images_per_second, "{:,.1f}".format),
        "MiB": lambda result: number_cell(result.peak_memory_bytes, mebibytes),
        "GPU MiB": lambda result: number_cell(result.device_memory_bytes, mebibytes),
        "frames missed": lambda result: number_cell(None if result.camera is None else result.camera.missed, percent),
        "load ms": lambda result: number_cell(result.load_ms),
        "first ms": lambda result: number_cell(result.first_ms, milliseconds),
    }
    return table_of(caption, results, columns).without_empty_columns()


def _place(result: Measurement) -> str:
    streams = "" if result.streams == 1 else f"{result.streams} streams"
    device = "" if result.device == "cpu" else result.device
    return ", ".join(filter(None, (result.backend, device, streams, place_of(None, result.threads))))


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
    gpus = "; ".join(", driver ".join(filter(None, (gpu.name, gpu.driver))) for gpu in machine.gpus)
    versions = (f"{name} {version}" for name, version in machine.versions.items())
    pairs = [
        ("processor", machine.processor),
        ("graphics", gpus or "no NVIDIA GPU"),
        ("system", machine.system),
        ("software", ", ".join([f"Python {machine.python}", *versions])),
    ]
    return [pair for pair in pairs if pair[1]]


def _reproduce(material: Material, out: Path) -> Section:
    lead = "Commands for the folder of this page: those that the reports record, and the one that made it."
    recorded = [line for loaded in material.reports if (line := _recorded(loaded, out))]
    chosen = [loaded.report.chosen for loaded in material.tunings]
    recorded += [shlex.join(_moved(shlex.split(trial.command), out)) for trial in chosen if trial is not None]
    blocks: list[Block] = [Commands(list(dict.fromkeys(recorded)), "The measurements.")] if recorded else []
    blocks.append(Commands([_own_command(material.sources, out)], "This page."))
    return Section("reproduce", "Reproduce", lead, blocks)


def _recorded(loaded: Loaded[Any], out: Path) -> str:
    """The command line of a report; empty where it records none, as reports made in Python or by older versions."""
    if not loaded.report.argv:
        return ""
    to_file = f" > {shlex.quote(from_page(loaded.path, out))}" if "--json" in loaded.report.argv else ""
    return shlex.join(_moved(loaded.report.argv, out)) + to_file


def _moved(words: Sequence[str], out: Path, first: int = 2) -> list[str]:
    """Return a command line whose words from `first` on name files as the folder of the page sees them, if here."""
    here = [
        word if word.startswith("-") or not Path(word).exists() else from_page(Path(word), out)
        for word in words[first:]
    ]
    return [*words[:first], *here]


def _own_command(sources: ReportSources, out: Path) -> str:
    words = [PROGRAM, "report", *_moved(sources.paths, out, 0), "-o", out.name]
    for option, paths in sources.by_option().items():
        words += [word for path in paths for word in (option, from_page(Path(path), out))]
    if sources.max_drop != ReportSources.max_drop:
        words += ["--max-drop", f"{sources.max_drop:g}"]
    return shlex.join(words)

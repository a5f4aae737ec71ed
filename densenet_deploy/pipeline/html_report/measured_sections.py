"""Sections of what was measured: Pareto front, latency, accuracy, parity and SQNR, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from densenet_deploy.analysis.report.page import Block, Cell, Column, Commands, Facts, Remarks, Section, Table
from densenet_deploy.pipeline.html_report import cells
from densenet_deploy.pipeline.html_report.decision import is_stale, runs_on
from densenet_deploy.pipeline.html_report.inputs import (
    Accuracy,
    Benchmark,
    MachineFacts,
    Measured,
    ParityFacts,
    Quantization,
    Validation,
)
from densenet_deploy.pipeline.html_report.material import Material
from densenet_deploy.pipeline.html_report.pictures import Pictures
from densenet_deploy.pipeline.html_report.tuning import Tuning

_WORST_CLASSES: Final = 10
_PARITY_COLUMNS: Final = (
    Column("SQNR dB", numeric=True),
    Column("cosine", numeric=True),
    Column("max |Δ|", numeric=True),
    Column("same top-1", numeric=True),
)


def pareto_section(material: Material, pictures: Pictures) -> Section:
    """Latency against accuracy: the picture, and what `tune` kept."""
    lead = "Worth a look is a model that no other beats in both speed and accuracy."
    blocks: list[Block] = [*pictures.pareto(), *(_front(tuning) for tuning in material.tunings if tuning.pareto)]
    if not blocks:
        made_by = "densenet-deploy tune MODEL --json > tune.json"
        blocks = [Commands([made_by], "It takes latency and accuracy of the same models: from tune, or from both of "
                           "benchmark and evaluate.")]  # fmt: skip
    return Section("pareto", "Speed and accuracy", lead, blocks)


def latency_section(material: Material) -> Section:
    """A table and the machine for every benchmark."""
    lead = "Median time of a call with its 95 % interval, in milliseconds. A shorter bar is faster, a wide one less sure."
    blocks: list[Block] = []
    for benchmark in material.benchmarks:
        blocks += _latency_blocks(benchmark, material)
    if not blocks:
        names = " ".join(model.name for model in material.models)
        blocks = [_made_by(f"densenet-deploy benchmark {names} --json > benchmark.json", "--benchmark benchmark.json")]
    return Section("latency", "Latency", lead, blocks)


def accuracy_section(material: Material) -> Section:
    """Top-1 and top-5 side by side, then what each model gets wrong."""
    lead = "On labelled pictures. The calibration error says how far a model's confidence is from how often it is right."
    if not material.accuracies:
        line = f"densenet-deploy evaluate {material.models[0].name} --data FOLDER --json > evaluate.json"
        return Section("accuracy", "Accuracy", lead, [_made_by(line, "--evaluate evaluate.json")])
    blocks: list[Block] = [_accuracy_table(material.accuracies)]
    blocks += [table for found in material.accuracies for table in _mistakes(found)]
    notes = dict.fromkeys(note for found in material.accuracies for note in found.notes)
    return Section("accuracy", "Accuracy", lead, [*blocks, *_remarks(notes)])


def parity_section(material: Material, pictures: Pictures) -> Section:
    """How far outputs are apart, and which layers INT8 costs most."""
    lead = "How far a model's outputs are from its reference's; 40 dB of SQNR is noise of a hundredth of the signal."
    blocks: list[Block] = []
    if material.validations:
        blocks.append(_validation_table(material.validations))
        blocks += [table for validation in material.validations for table in _layer_tables(validation)]
    sensitivity = pictures.sensitivity()
    blocks += sensitivity
    model = material.models[0].name
    if not material.validations:
        line = f"densenet-deploy validate {model} OTHER --per-layer --json > validate.json"
        blocks.insert(0, _made_by(line, "--validate validate.json"))
    if not sensitivity:
        line = f"densenet-deploy sensitivity {model} --calibration FOLDER --json > sensitivity.json"
        blocks.append(_made_by(line, "--sensitivity sensitivity.json", "What each layer costs in INT8"))
    return Section("parity", "Parity and SQNR", lead, blocks)


def calibration_section(material: Material) -> Section:
    """How INT8 was calibrated and written."""
    lead = "INT8 takes ranges from pictures. What they were, and which layers kept float numbers."
    recipes = [(model.name, model.manifest.recipe) for model in material.models if model.manifest is not None]
    written = [(name, f"recipe {recipe}, says the file") for name, recipe in recipes if recipe is not None]
    blocks: list[Block] = [Facts(written)] if written else []
    blocks += [_calibration(quantization) for quantization in material.quantizations]
    if not material.quantizations:
        line = f"densenet-deploy quantize {material.models[0].name} --calibration FOLDER --json > quantize.json"
        blocks.append(_made_by(line, "--quantize quantize.json"))
    return Section("calibration", "Calibration", lead, blocks)


def _made_by(line: str, option: str, what: str = "There are no data for this") -> Commands:
    return Commands([line], f"{what} yet. This command makes them; give them with {option}.")


def _remarks(sentences: Iterable[str]) -> list[Block]:
    told = list(sentences)
    return [Remarks(told)] if told else []


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
            cells.text(trial.model.rpartition("/")[2]),
            cells.text(runs_on(trial.backend, trial.threads, trial.batch)),
            Cell(cells.UNKNOWN) if trial.latency_ms is None else cells.timed(trial.latency_ms, trial.interval, longest),
            cells.number(trial.top1, cells.percent),
            cells.number(trial.drop_points, cells.fixed(2)),
            cells.number(None if trial.parity is None else trial.parity.sqnr_db, cells.fixed(1)),
            cells.number(trial.memory_bytes, cells.mib),
        )
        for trial in tuning.pareto
    ]
    return Table(f"The Pareto front that tune found ({tuning.path.name})", columns, rows)


def _latency_blocks(benchmark: Benchmark, material: Material) -> list[Block]:
    blocks: list[Block] = []
    for scenario in dict.fromkeys(result.scenario for result in benchmark.results):
        results = [result for result in benchmark.results if result.scenario == scenario]
        blocks.append(_latency_table(f"Scenario {scenario} ({benchmark.path.name})", results, material))
    if benchmark.machine is not None:
        blocks.append(_machine(benchmark.machine))
    return [*blocks, *_remarks(benchmark.notes)]


def _latency_table(caption: str, results: Sequence[Measured], material: Material) -> Table:
    longest = cells.longest_of([(result.interval or (0, result.median))[1] for result in results])
    camera = any(result.missed is not None for result in results)
    on_gpu = any(result.device_memory_bytes is not None for result in results)
    columns = [
        Column("model"),
        Column("runs on"),
        Column("in"),
        Column("batch", numeric=True),
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
            cells.number(result.batch, cells.fixed(0)),
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
    return ", ".join(filter(None, (result.backend, result.device, streams, threads)))


def _machine(machine: MachineFacts) -> Facts:
    quota = "" if machine.quota is None else f", quota {machine.quota:g}"
    clock = "" if machine.mhz is None else f", {machine.mhz:,.0f} MHz"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions)
    pairs = [
        ("processor", f"{machine.cpu}, {machine.usable_cpus} usable CPUs{quota}{clock}"),
        ("graphics", "; ".join(machine.gpus) or "no NVIDIA GPU"),
        ("system", machine.system),
        ("software", f"Python {machine.python}, {versions}"),
        ("date", machine.date),
    ]
    return Facts([pair for pair in pairs if pair[1]], "The machine")


def _accuracy_table(found: Sequence[Accuracy]) -> Table:
    columns = (
        Column("model"),
        Column("ran on"),
        Column("top-1", numeric=True),
        Column("top-5", numeric=True),
        Column("calibration error", numeric=True),
        Column("pictures", numeric=True),
        Column("unreadable", numeric=True),
        Column("same answer as", numeric=True),
    )
    rows = [
        (
            cells.text(one.model.rpartition("/")[2]),
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


def _mistakes(found: Accuracy) -> list[Table]:
    """The weakest classes and the most frequent mistakes of a model, folded."""
    name = found.model.rpartition("/")[2]
    weak = sorted((one for one in found.classes if one.right < one.count), key=lambda one: one.right / one.count)
    tables = []
    if weak:
        columns = Column("class"), Column("top-1", numeric=True), Column("pictures", numeric=True)
        rows = [
            (cells.text(one.name), cells.number(one.right / one.count, cells.percent), _count(one.count))
            for one in weak[:_WORST_CLASSES]
        ]
        tables.append(Table(f"Weakest classes of {name}", columns, rows, f"Weakest classes of {name}"))
    if found.mistaken:
        columns = Column("class"), Column("taken for"), Column("times", numeric=True)
        wrong = [
            (cells.text(truth), cells.text(answer), _count(times))
            for truth, answer, times in found.mistaken[:_WORST_CLASSES]
        ]
        tables.append(Table(f"Most frequent mistakes of {name}", columns, wrong, f"Most frequent mistakes of {name}"))
    return tables


def _count(number: int) -> Cell:
    return cells.number(number, cells.fixed(0))


def _validation_table(validations: Sequence[Validation]) -> Table:
    columns = (Column("candidate"), Column("reference"), *_PARITY_COLUMNS, Column("gates"))
    rows = [
        (cells.text(one.candidate), cells.text(one.reference), *_parity_cells(one.parity), _verdict(one))
        for one in validations
    ]
    return Table("Parity of outputs", columns, rows)


def _verdict(validation: Validation) -> Cell:
    if validation.passed:
        return Cell("passed", "passed", tone="good")
    return Cell(f"missed: {'; '.join(validation.failed)}", "missed", tone="bad")


def _parity_cells(parity: ParityFacts) -> tuple[Cell, ...]:
    exact = Cell("∞", float("inf")) if parity.sqnr_db is None and parity.max_abs == 0 else None
    return (
        exact or cells.number(parity.sqnr_db, cells.fixed(1)),
        cells.number(parity.cosine, cells.cosine),
        cells.number(parity.max_abs, cells.small),
        cells.number(parity.top1_agreement, cells.percent),
    )


def _layer_tables(validation: Validation) -> list[Block]:
    if not validation.layers:
        return list(_remarks(validation.notes))
    name = validation.model.rpartition("/")[2]
    diverges = f"; the first to miss a gate is {validation.first_divergence}" if validation.first_divergence else ""
    rows = [(cells.text(layer.name), *_parity_cells(layer)[:3]) for layer in validation.layers]
    table = Table(
        f"The {len(rows)} layers of {name} that are furthest from the reference{diverges}",
        (Column("layer"), *_PARITY_COLUMNS[:3]),
        rows,
        f"Layer by layer: {name}",
    )
    return [table, *_remarks(validation.notes)]


def _calibration(quantization: Quantization) -> Facts:
    parity = quantization.parity
    sqnr = "–" if parity.sqnr_db is None else f"{parity.sqnr_db:.1f} dB"
    kept = ", ".join(quantization.float_layers)
    pairs = [
        ("calibrated on", f"{quantization.calibrated_on} pictures"),
        ("recipe", quantization.recipe),
        ("weights", "" if quantization.weight_bits is None else f"{quantization.weight_bits} bits"),
        ("layers in INT8", str(quantization.layers_int8)),
        ("layers in float", f"{len(quantization.float_layers)}{': ' if kept else ''}{kept}"),
        ("SQNR on calibration pictures", sqnr),
        ("speed against float", quantization.speed),
        ("remarks", "; ".join(quantization.notes)),
    ]
    return Facts([pair for pair in pairs if pair[1]], quantization.model.rpartition("/")[2])

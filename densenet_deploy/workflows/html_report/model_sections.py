"""Sections about the models: parity, calibration, precision of layers, architecture, provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.errors import counted
from densenet_deploy.manifest import Manifest, sides
from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import Cell, Table, number_cell, percent, table_of, text_cell
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.decision import from_page
from densenet_deploy.workflows.html_report.decide import file_of
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import FileFacts, Material, ModelSummary
from densenet_deploy.workflows.html_report.page import Block, Facts, Section, file_cell, remarks
from densenet_deploy.workflows.quantize.quantize import QuantizeReport


def sqnr_cell(parity: Parity | None) -> Cell:
    """Return a cell with the SQNR in dB; a dash where it is unknown."""
    if parity is None:
        return number_cell(None)
    if parity.nonfinite:
        return Cell("NaN or Inf", -math.inf, tone="bad")
    return Cell("∞", math.inf) if parity.sqnr_db == math.inf else number_cell(parity.sqnr_db, "{:.1f}".format)


def parity_section(material: Material, figures: Figures) -> Section:
    """How far outputs differ, and which layers lose most in INT8."""
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
    return Section("parity", "Parity and SQNR", lead, blocks)


def _validated(validations: Sequence[ComparisonReport]) -> Table:
    def verdict(one: ComparisonReport) -> Cell:
        if one.passed is None:
            return Cell("no gate", "no gate", tone="quiet")
        if one.passed:
            return Cell("passed", "passed", tone="good")
        return Cell(f"missed: {'; '.join(one.failed)}", "missed", tone="bad")

    columns: dict[str, Callable[[ComparisonReport], Cell]] = {
        "model": lambda one: file_cell(file_of(one.candidate)),
        "reference": lambda one: file_cell(file_of(one.reference)),
        "SQNR dB": lambda one: sqnr_cell(one.parity),
        "centred dB": lambda one: number_cell(one.parity.centred_sqnr_db, "{:.1f}".format),
        "cosine": lambda one: number_cell(one.parity.cosine, "{:.6f}".format),
        "max difference": lambda one: number_cell(one.parity.max_abs, "{:.3g}".format),
        "same top-1": lambda one: number_cell(one.parity.top1_agreement, percent),
        "gates": verdict,
        "ran on": lambda one: text_cell(_described_place(one.candidate)),
        "reference on": lambda one: text_cell(_described_place(one.reference)),
    }
    return table_of("Parity of outputs", validations, columns).without_empty_columns()


def _described_place(described: str) -> str:
    """Backend with version, device and precision; neither the provider nor the number of threads."""
    words = described.removeprefix(f"{file_of(described)}: ").split(", ")
    kept = [word for word in words if not word.endswith(("ExecutionProvider", " thread", " threads"))]
    return ", ".join({word.lower(): word for word in kept}.values())


def _layers_apart(validation: ComparisonReport) -> list[Block]:
    if not validation.worst_layers:
        return remarks(validation.notes)
    name, layers = file_of(validation.candidate).rpartition("/")[2], validation.worst_layers
    diverges = f"; the first to miss a gate is {validation.first_divergence}" if validation.first_divergence else ""
    found = table_of(
        f"The {counted(len(layers), 'layer')} of {name} that differ most from the reference{diverges}",
        layers,
        {
            "layer": lambda layer: text_cell(layer.name),
            "SQNR dB": lambda layer: sqnr_cell(layer.parity),
            "cosine": lambda layer: number_cell(layer.parity.cosine, "{:.6f}".format),
            "max difference": lambda layer: number_cell(layer.parity.max_abs, "{:.3g}".format),
        },
        f"Layer by layer: {name}",
    )
    return [found, *remarks(validation.notes)]


def _sensitivity(data: SensitivityData) -> Table:
    whole = data.whole.sqnr_db
    return table_of(
        f"{data.title}; everything in INT8: {whole:.1f} dB",
        data.rows,
        {
            "layer or block": lambda row: text_cell(row.name, code=True),
            "SQNR dB, only this in INT8": lambda row: number_cell(row.only_int8.sqnr_db, "{:.1f}".format),
            "SQNR dB, only this in FP32": lambda row: number_cell(row.only_float.sqnr_db, "{:.1f}".format),
            "gain dB": lambda row: number_cell(row.only_float.sqnr_db - whole, "{:.1f}".format),
            "top-1, only this in INT8": lambda row: number_cell(row.only_int8.top1, percent),
        },
        "The same in numbers",
    )


def calibration_section(material: Material) -> Section:
    """How each INT8 model was calibrated and written."""
    lead = "INT8 takes its ranges from calibration images: how many there were, and which layers stayed in FP32."
    recipes = [(model.name, model.manifest.recipe) for model in material.models if model.manifest is not None]
    written = [(name, f"recipe {recipe}, as recorded in the file") for name, recipe in recipes if recipe is not None]
    blocks: list[Block] = [Facts(written)] if written else []
    if material.quantizations:
        blocks += _calibrated([loaded.report for loaded in material.quantizations])
    return Section("calibration", "Calibration", lead, blocks)


def _calibrated(quantizations: Sequence[QuantizeReport]) -> list[Block]:
    found = table_of(
        "Calibration of each model",
        quantizations,
        {
            "model": lambda one: file_cell(str(one.onnx or "in memory")),
            "images": lambda one: number_cell(one.calibrated_on),
            "recipe": lambda one: text_cell(one.recipe),
            "weight bits": lambda one: number_cell(one.weight_bits),
            "INT8 layers": lambda one: number_cell(one.layers_int8),
            "FP32 layers": lambda one: number_cell(one.layers_float),
            "SQNR dB on them": lambda one: sqnr_cell(one.parity),
            "speed": lambda one: text_cell(one.speed or "not measured"),
        },
    )
    kept = [f"{one.onnx}: FP32 layers: {', '.join(one.float_layers)}" for one in quantizations if one.float_layers]
    notes = [f"{one.onnx}: {note}" for one in quantizations for note in one.notes]
    return [found, *remarks([*kept, *notes])]


def precision_section(material: Material) -> Section:
    """In which precision each layer computes."""
    lead = "In which precision convolutions and matrix products compute: as the file says, and as the backend reports."

    def ran_in(model: ModelSummary) -> Cell:
        results = (one for one in material.results if model.is_called(one.model) and one.sha256 == model.sha256)
        return text_cell(", ".join(dict.fromkeys(f"{one.precision} ({one.backend})" for one in results)))

    found = table_of(
        "Precision",
        material.shown,
        {
            "model": lambda model: text_cell(model.name),
            "precision": lambda model: text_cell(model.precision),
            "layers compute in": lambda model: text_cell(
                ", ".join(f"{count} {kind}" for kind, count in model.counts.items())
            ),
            "ran in": ran_in,
            "source": lambda model: text_cell(model.evidence),
        },
    )
    layers = [_layers(model) for model in material.shown if model.layers]
    return Section("precision", "Precision of each layer", lead, [found, *layers, *_absent(material)])


def _layers(model: ModelSummary) -> Table:
    return table_of(
        "Convolutions and matrix products",
        model.layers,
        {
            "layer": lambda layer: text_cell(layer.name, code=True),
            "operator": lambda layer: text_cell(layer.operator),
            "computes in": lambda layer: text_cell(layer.precision),
        },
        f"All {counted(len(model.layers), 'layer')} of {model.name}",
    )


def network_section(material: Material, figures: Figures) -> Section:
    """What the architecture costs, in numbers and figures."""
    lead = "What the architecture costs, how its features grow, and how they are reused."
    known = next((model.architecture for model in material.models if model.architecture is not None), None)
    blocks: list[Block] = []
    if known is not None:
        size = f"{' × '.join(map(str, sides(known.image_size)))} pixels"
        pairs = [("parameters", f"{known.parameters:,}"), ("MACs per image", f"{known.macs:,}"), ("image", size)]
        blocks.append(Facts(pairs))
    return Section("network", "The network", lead, [*blocks, *figures.of_network()])


def provenance_section(material: Material, page: Path) -> Section:
    """Hashes of all files, and the facts that the models carry."""
    lead = "The SHA-256 of every file that this page is about, and what the models record about themselves."
    blocks: list[Block] = [_files("Models", page, [file for model in material.shown for file in model.files])]
    blocks += _absent(material)
    if material.inputs:
        blocks.append(_files("Reports behind this page", page, material.inputs))
    return Section("provenance", "Provenance", lead, [*blocks, *_origins(material.shown)])


def _absent(material: Material) -> list[Block]:
    """A remark on the file to ship where it is not here."""
    chosen = material.tunings[-1].report.chosen if material.tunings else None
    if chosen is None or any(model.is_called(str(chosen.model)) for model in material.shown):
        return []
    return remarks(
        [f"{chosen.model}, the file to ship, is not on this machine; tune recorded SHA-256 {chosen.sha256}."]
    )


def _files(caption: str, page: Path, files: Sequence[FileFacts]) -> Table:
    return table_of(
        caption,
        files,
        {
            "file": lambda file: text_cell(from_page(file.path, page) if file.path.exists() else file.path),
            "bytes": lambda file: number_cell(file.bytes),
            "SHA-256": lambda file: text_cell(file.sha256, code=True),
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

"""Sections of what precision costs: parity and SQNR of outputs and layers, and how INT8 was calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.report.page import Block, Cell, Column, Facts, Section, Table
from densenet_deploy.workflows.html_report import cells
from densenet_deploy.workflows.html_report.commands import float_models
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.inputs import ParityFacts, Quantization, Validation, file_of
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.parts import count, file_name, made_by, remarks

_PARITY_COLUMNS: Final = (
    Column("SQNR dB", numeric=True),
    Column("cosine", numeric=True),
    Column("max |Δ|", numeric=True),
    Column("same top-1", numeric=True),
)


def parity_section(material: Material, figures: Figures) -> Section:
    """How far outputs are apart, and which layers INT8 costs most."""
    lead = "How far a model's outputs are from its reference's; 40 dB of SQNR is noise of a hundredth of the signal."
    blocks: list[Block] = []
    if material.validations:
        blocks.append(_validation_table(material.validations))
        blocks += [table for validation in material.validations for table in _layer_tables(validation)]
    sensitivity = figures.sensitivity()
    blocks += sensitivity
    first, *others = (model.path for model in material.models)
    if not material.validations:
        blocks.insert(0, made_by("validate", first, *(others[:1] or [Path("OTHER_MODEL")]), "--per-layer"))
    if not sensitivity:
        arguments = (*_float_model(material), "--calibration", "FOLDER")
        missing = "There are no data yet on what each layer costs in INT8"
        blocks.append(made_by("sensitivity", *arguments, missing=missing))
    return Section("parity", "Parity and SQNR", lead, blocks)


def calibration_section(material: Material) -> Section:
    """How INT8 was calibrated and written."""
    lead = "INT8 takes ranges from figures. What they were, and which layers kept float numbers."
    recipes = [(model.name, model.manifest.recipe) for model in material.models if model.manifest is not None]
    written = [(name, f"recipe {recipe}, says the file") for name, recipe in recipes if recipe is not None]
    blocks: list[Block] = [Facts(written)] if written else []
    if material.quantizations:
        blocks += _calibration(material.quantizations)
    else:
        blocks.append(made_by("quantize", *_float_model(material), "--calibration", "FOLDER"))
    return Section("calibration", "Calibration", lead, blocks)


def _float_model(material: Material) -> list[Path]:
    """What INT8 is made of: a float file, or else whatever model there is."""
    return [*float_models(material.models), material.models[0].path][:1]


def _validation_table(validations: Sequence[Validation]) -> Table:
    columns = (
        Column("model"),
        Column("against"),
        *_PARITY_COLUMNS,
        Column("gates"),
        Column("ran on"),
        Column("its reference on"),
    )
    rows = [
        (
            file_name(one.model),
            file_name(file_of(one.reference)),
            *_parity_cells(one.parity),
            _verdict(one),
            cells.text(_place_of(one.candidate)),
            cells.text(_place_of(one.reference)),
        )
        for one in validations
    ]
    return Table("Parity of outputs", columns, rows)


def _place_of(described: str) -> str:
    """The backend with its version, device and precision; not the provider, nor how many threads."""
    words = described.removeprefix(f"{file_of(described)}: ").split(", ")
    told = [word for word in words if not word.endswith(("ExecutionProvider", " thread", " threads"))]
    return ", ".join({word.lower(): word for word in told}.values())


def _verdict(validation: Validation) -> Cell:
    if validation.passed:
        return Cell("passed", "passed", tone="good")
    if validation.passed is None:
        return Cell("no gate", "no gate")
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
        return list(remarks(validation.notes))
    name = validation.model.rpartition("/")[2]
    diverges = f"; the first to miss a gate is {validation.first_divergence}" if validation.first_divergence else ""
    rows = [(cells.text(layer.name), *_parity_cells(layer)[:3]) for layer in validation.layers]
    table = Table(
        f"The {len(rows)} layers of {name} that are furthest from the reference{diverges}",
        (Column("layer"), *_PARITY_COLUMNS[:3]),
        rows,
        f"Layer by layer: {name}",
    )
    return [table, *remarks(validation.notes)]


def _calibration(quantizations: Sequence[Quantization]) -> list[Block]:
    columns = (
        Column("model"),
        Column("figures", numeric=True),
        Column("recipe"),
        Column("weight bits", numeric=True),
        Column("INT8 layers", numeric=True),
        Column("float layers", numeric=True),
        Column("SQNR dB on them", numeric=True),
        Column("speed against float"),
    )
    rows = [
        (
            file_name(one.model),
            count(one.calibrated_on),
            cells.text(one.recipe),
            cells.number(one.weight_bits, cells.fixed(0)),
            count(one.layers_int8),
            count(len(one.float_layers)),
            cells.number(one.parity.sqnr_db, cells.fixed(1)),
            cells.text(one.speed),
        )
        for one in quantizations
    ]
    kept = [f"{one.model}: float stayed {', '.join(one.float_layers)}" for one in quantizations if one.float_layers]
    told = [f"{one.model}: {note}" for one in quantizations for note in one.notes]
    return [Table("What each was calibrated on", columns, rows), *remarks([*kept, *told])]

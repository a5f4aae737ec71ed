"""Sections of what the files themselves say: precision by layer, figures, provenance, and how to make it all again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from densenet_deploy.analysis.report.page import Block, Cell, Column, Commands, Facts, Section, Table
from densenet_deploy.manifest import Manifest
from densenet_deploy.workflows.html_report import cells
from densenet_deploy.workflows.html_report.commands import commands_for
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.material import Material
from densenet_deploy.workflows.html_report.models import FileFacts, ModelFacts


def precision_section(material: Material) -> Section:
    """What each file's layers compute in, and what backends said that they ran it in."""
    lead = "What convolutions and matrix products compute in, read from each file, and what the backend said it ran."
    columns = Column("model"), Column("holds"), Column("layers compute in"), Column("ran in"), Column("how it is known")
    rows = [
        (
            cells.text(model.name),
            cells.text(model.precision),
            cells.text(", ".join(f"{count} {precision}" for precision, count in model.counts.items())),
            cells.text(_ran_in(model, material)),
            cells.text(model.proof),
        )
        for model in material.models
    ]
    tables = [Table("Precision", columns, rows), *(_layers(model) for model in material.models if model.layers)]
    return Section("precision", "Precision proof", lead, tables)


def _ran_in(model: ModelFacts, material: Material) -> str:
    found = {
        f"{result.precision} ({result.backend})": None
        for result in material.results
        if model.is_meant_by(result.model) and result.sha256 == model.sha256
    }
    return ", ".join(found)


def _layers(model: ModelFacts) -> Table:
    rows = [
        (cells.text(layer.name, code=True), cells.text(layer.operator), cells.text(layer.precision))
        for layer in model.layers
    ]
    columns = Column("layer"), Column("operator"), Column("computes in")
    return Table(f"Layers of {model.name}", columns, rows, f"All {len(rows)} layers of {model.name}")


def figures_section(material: Material, figures: Figures) -> Section:
    """What the architecture costs, in figures and numbers."""
    lead = "What the architecture costs, how its features grow and are used again."
    described = next((model.architecture for model in material.models if model.architecture is not None), None)
    blocks: list[Block] = []
    if described is not None:
        blocks.append(
            Facts(
                [
                    ("parameters", f"{described.cost.parameters:,}"),
                    ("MACs a figure", f"{described.cost.macs:,}"),
                    ("figure", f"{described.image_size} × {described.image_size} pixels"),
                ]
            )
        )
    return Section("figures", "The network", lead, [*blocks, *figures.of_network()])


def provenance_section(material: Material) -> Section:
    """Where everything came from: hashes of all files, weights, preprocessing, tools."""
    lead = "The SHA-256 of every file that this page speaks of, and what the models say of themselves."
    models = [file for model in material.models for file in model.files]
    blocks: list[Block] = [_files("Models", models)]
    if material.inputs:
        blocks.append(_files("Reports that this page was made from", material.inputs))
    return Section("provenance", "Provenance", lead, [*blocks, *_origins(material.models)])


def _origins(models: Sequence[ModelFacts]) -> Iterator[Facts]:
    """What models say of themselves; once for those that say the same, as files made from one another do."""
    said = [(model.name, _origin(model.manifest)) for model in models if model.manifest is not None]
    while said:
        pairs = said[0][1]
        yield Facts(pairs, ", ".join(name for name, others in said if others == pairs))
        said = [(name, others) for name, others in said if others != pairs]


def _files(caption: str, files: Sequence[FileFacts]) -> Table:
    columns = Column("file"), Column("bytes", numeric=True), Column("SHA-256")
    rows: list[tuple[Cell, ...]] = [
        (cells.text(file.path), cells.number(file.bytes, cells.fixed(0)), cells.text(file.sha256, code=True))
        for file in files
    ]
    return Table(caption, columns, rows)


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    weights, prepared = manifest.weights, manifest.preprocessing
    seed = "" if weights.seed is None else f", random, seed {weights.seed}"
    mean, deviation = (", ".join(f"{value:g}" for value in triple) for triple in (prepared.mean, prepared.std))
    size = f"resized to {prepared.resize}, cropped to {prepared.image_size} pixels ({prepared.interpolation})"
    return [
        ("variant", manifest.variant),
        ("weights", f"{weights.source}{seed}"),
        ("SHA-256 of the weights", weights.sha256),
        ("figures", f"{size}; mean {mean}; deviation {deviation}"),
        ("labels", str(len(manifest.labels)) if manifest.labels else "none"),
        ("batch", "dynamic" if manifest.batch is None else str(manifest.batch)),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())),
    ]


def commands_section(material: Material, report_command: str) -> Section:
    """The commands that make the files and the figures again."""
    lead = "Words in capitals stand for what no file records: a folder of figures, where weights or labels lie."
    blocks = [Commands(lines, said) for said, lines in commands_for(material)]
    return Section("reproduce", "Make it again", lead, [*blocks, Commands([report_command], "This page.")])

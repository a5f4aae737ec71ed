"""What the page says about models: parity and the layers that differ most."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import Cell, Table, number_cell, time_cell
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import Material, ReportSources, load_material
from densenet_deploy.workflows.html_report.model_sections import (
    parity_section,
    precision_section,
    provenance_section,
    sqnr_cell,
)
from densenet_deploy.workflows.html_report.page import Remarks
from tests.workflows.html_report.conftest import ReportFolder, parity, validation
from tests.workflows.html_report.test_decide import trial, tuned


def parity_blocks(reports: ReportFolder, **changes: object) -> list[object]:
    facts = validation(reports.slow, reports.fast)
    report = dataclasses.replace(ComparisonReport.from_json(facts), **changes)
    material = load_material(reports.sources(validations=(report,)))
    return list(parity_section(material, Figures(material)).blocks)


def cell_of(table: object, name: str) -> Cell | None:
    assert isinstance(table, Table)
    return table.rows[0][list(table.headings).index(name)] if name in table.headings else None


@pytest.mark.parametrize(
    ("passed", "failed", "verdict"),
    [
        (None, (), Cell("no gate", "no gate", tone="quiet")),
        (True, (), Cell("passed", "passed", tone="good")),
        (False, ("cosine 0.9", "max_abs 3"), Cell("missed: cosine 0.9; max_abs 3", "missed", tone="bad")),
    ],
)
def test_the_verdict_of_gates_is_one_of_three(reports: ReportFolder, passed, failed, verdict) -> None:
    first, *_ = parity_blocks(reports, passed=passed, failed=failed)
    assert cell_of(first, "gates") == verdict


def test_a_column_that_says_nothing_is_left_out(reports: ReportFolder) -> None:
    assert cell_of(parity_blocks(reports)[0], "centred dB") == number_cell(31.5, "{:.1f}".format)
    unknown = Parity.from_json(parity() | {"centred_sqnr_db": None})
    assert cell_of(parity_blocks(reports, outputs={"logits": unknown})[0], "centred dB") is None


def test_the_layers_that_differ_most_are_listed_or_the_notes_say_why_not(reports: ReportFolder) -> None:
    _, layers, *_ = parity_blocks(reports, first_divergence="features.conv0")
    assert "1 layer of fast.onnx" in layers.caption
    assert layers.caption.endswith("the first to miss a gate is features.conv0")
    _, notes, *_ = parity_blocks(reports, worst_layers=(), notes=("layers were not compared",))
    assert isinstance(notes, Remarks)
    assert list(notes.sentences) == ["layers were not compared"]


def test_numbers_that_are_unknown_or_infinite_have_cells() -> None:
    known = Parity.from_json(parity(40.0))
    assert sqnr_cell(None) == number_cell(None)
    assert sqnr_cell(dataclasses.replace(known, sqnr_db=math.inf)) == Cell("∞", math.inf)
    assert sqnr_cell(known).text == "40.0"
    assert time_cell(2.0, (1.0, 3.0), 4.0) == Cell("2.00 [1.00, 3.00]", 2.0, (0.25, 0.5, 0.75))
    assert time_cell(2.0, None) == Cell("2.00", 2.0)


def tuned_for(reports: ReportFolder, path: Path) -> Material:
    chosen = trial(reports, model=path, sha256="ab" * 32)
    return load_material(ReportSources((reports.slow,), tunings=(tuned(reports, chosen=chosen),)))


def test_the_file_that_tune_made_is_listed_with_its_hash_and_its_layers(reports: ReportFolder) -> None:
    made = reports.folder / "made.onnx"
    made.write_bytes(reports.slow.read_bytes())
    material = tuned_for(reports, made)
    precision, files = precision_section(material), provenance_section(material, reports.folder / "page.html").blocks[0]
    assert [row[0].text for row in precision.blocks[0].rows] == ["slow.onnx", "made.onnx"]
    assert precision.blocks[2].folded.endswith("of made.onnx")
    assert [(row[0].text, row[2].text) for row in files.rows][1] == ("made.onnx", reports.hash(made))
    assert not any(isinstance(one, Remarks) for one in precision.blocks)


def test_a_file_that_was_tuned_and_cannot_be_read_is_listed_with_its_hash_alone(reports: ReportFolder) -> None:
    other = reports.folder / "made.onnx"
    other.write_bytes(b"another model")
    material = tuned_for(reports, other)
    assert [row[1].text for row in precision_section(material).blocks[0].rows][1] == "unknown"
    assert material.shown[1].sha256 == reports.hash(other)


def test_a_file_to_ship_that_is_not_here_is_named_with_the_hash_that_tune_recorded(reports: ReportFolder) -> None:
    material = tuned_for(reports, Path("elsewhere/made.onnx"))
    for section in (precision_section(material), provenance_section(material, reports.folder / "page.html")):
        (said,) = [sentence for one in section.blocks if isinstance(one, Remarks) for sentence in one.sentences]
        assert said.startswith("elsewhere/made.onnx, the file to ship, is not on this machine")
        assert "ab" * 32 in said


def test_values_that_are_not_finite_have_no_sqnr():
    known = Parity(0.5, 0.5, 1.0, 1.0, 0.9, 12.345, None, None, None, 8)
    assert sqnr_cell(known).text == "12.3"
    assert sqnr_cell(dataclasses.replace(known, sqnr_db=math.inf)).text == "∞"
    assert sqnr_cell(dataclasses.replace(known, sqnr_db=math.inf, nonfinite=1)).text == "NaN or Inf"

"""What the page says about models: parity and the layers that differ most."""

from __future__ import annotations

import dataclasses
import math

import pytest

from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import Cell, Table, number_cell, time_cell
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import load_material
from densenet_deploy.workflows.html_report.model_sections import parity_section, sqnr_cell
from densenet_deploy.workflows.html_report.page import Remarks
from tests.workflows.html_report.conftest import ReportFolder, parity, validation


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
    assert "1 layers of fast.onnx" in layers.caption
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

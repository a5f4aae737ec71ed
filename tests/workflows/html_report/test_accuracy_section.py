"""The accuracy section shows the figures of each task, in tables of their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from densenet_deploy.reports import Table
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.accuracy_section import accuracy_section
from densenet_deploy.workflows.html_report.load import Loaded, Material, ReportSources, load_material
from densenet_deploy.workflows.html_report.page import Section
from tests.workflows.evaluation.test_report import MULTICLASS, MULTILABEL, REGRESSION
from tests.workflows.html_report.conftest import ReportFolder


def section(*found: EvaluateReport) -> Section:
    evaluations = tuple(Loaded(Path("evaluate.json"), one) for one in found)
    return accuracy_section(Material(ReportSources(("a.onnx",)), (), evaluations=evaluations))


def tables(shown: Section) -> dict[str, list[list[str]]]:
    found = (block for block in shown.blocks if isinstance(block, Table))
    return {one.caption: [list(one.headings), *([cell.text for cell in row] for row in one.rows)] for one in found}


def rows_of(shown: Section) -> list[list[str]]:
    return [[cell.text for cell in row] for block in shown.blocks if isinstance(block, Table) for row in block.rows]


RAN = ["model", "ran on"]
READ = ["images", "unreadable"]


def test_classes_have_top1_and_their_agreement() -> None:
    found = tables(section(MULTICLASS))
    assert found["Accuracy"] == [
        [*RAN, "top-1", "top-5", "calibration error", *READ, "same answer as"],
        ["a.onnx", "onnxruntime, fp32", "75.00%", "100.00%", "12.50%", "4", "0", "b.onnx: 66.67%"],
        ["b.onnx", "openvino, int8", "50.00%", "100.00%", "25.00%", "4", "–", "–"],
    ]
    assert "calibration error" in section(MULTICLASS).lead


def test_labels_have_their_areas_and_a_row_each() -> None:
    shown = section(MULTILABEL)
    first, rows = tables(shown).values()
    assert first == [
        [*RAN, "AUROC", "average precision", "F1", *READ],
        ["a.onnx", "onnxruntime, fp32", "0.8123", "0.5", "0.6667", "4", "1"],
        ["b.onnx", "openvino, int8", "0.8", "0.25", "–", "4", "–"],
    ]
    assert rows[1:] == [
        ["a.onnx", "Edema", "0.8123", "0.5", "0.6667", "0.5", "1", "4", "1"],
        ["a.onnx", "Hernia", "–", "–", "–", "–", "–", "4", "0"],
    ]
    assert rows[0][1:] == ["label", "AUROC", "average precision", "F1", "precision", "recall", "known", "positive"]
    assert ("means over the labels" in shown.lead, "calibration error" in shown.lead) == (True, False)


def test_regressions_have_errors() -> None:
    first, rows = tables(section(REGRESSION)).values()
    assert first == [
        [*RAN, "MAE", "RMSE", *READ],
        ["a.onnx", "onnxruntime, fp32", "2", "2.55", "4", "0"],
        ["b.onnx", "openvino, int8", "2.5", "3", "4", "–"],
    ]
    assert rows[1:] == [["a.onnx", "output 0", "1", "1.5"], ["a.onnx", "output 1", "3", "3.25"]]


def test_every_task_has_its_table() -> None:
    shown = section(REGRESSION, MULTILABEL, MULTICLASS)
    captions = list(tables(shown))
    assert captions[:3] == ["Accuracy", "Accuracy, multilabel", "Accuracy, regression"]
    assert shown.lead.count(".") == 4


def test_classes_of_the_same_label_are_told_apart_by_their_index() -> None:
    classes = tuple(dataclasses.replace(one, label="crane") for one in MULTICLASS.classes)
    shown = section(dataclasses.replace(MULTICLASS, labels=("crane", "crane"), classes=classes))
    rows = rows_of(shown)
    assert ["a.onnx", "crane (0)", "66.67%", "3"] in rows
    assert ["a.onnx", "crane (0)", "crane (1)", "1"] in rows
    without = section(dataclasses.replace(MULTICLASS, labels=()))  # as in the JSON of older versions
    assert ["a.onnx", "cat", "dog", "1"] in rows_of(without)


def test_an_evaluation_of_other_bytes_is_marked(reports: ReportFolder) -> None:
    (slow, _) = reports.evaluated(0.9, 0.9)
    facts = json.loads(slow.read_text()) | {"sha256": "0" * 64}
    for sha256, name in (("0" * 64, "slow.onnx (since changed)"), (reports.hash(reports.slow), "slow.onnx")):
        path = reports.write("slow.json", facts | {"sha256": sha256})
        shown = accuracy_section(load_material(reports.sources(evaluations=(path,))))
        assert tables(shown)["Accuracy"][1][0] == name

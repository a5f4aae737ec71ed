"""The figures of the page: latency against each kind of accuracy that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.workflows.html_report.decide import decide
from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import load_material
from tests.workflows.html_report.conftest import ReportFolder, evaluation
from tests.workflows.html_report.test_decide import labelled, trial, tuned


def figures(reports: ReportFolder, *evaluations: dict[str, Any], **given: Any) -> list[bytes]:
    written = tuple(reports.write(f"{place}.json", one) for place, one in enumerate(evaluations))
    material = load_material(reports.sources(benchmarks=(reports.compared(),), evaluations=written, **given))
    return [one.svg for one in Figures(material).pareto(decide(material).decision)]


def regression(model: Path, mae: float) -> dict[str, Any]:
    return evaluation(model, 0.0) | {"task": "regression", "top1": None, "mae": mae}


@pytest.mark.parametrize(
    ("kind", "words", "values"),
    [
        (evaluation, b"top-1 accuracy (%)", (0.9, 0.895)),
        (labelled, b"mean AUROC of the labels", (0.9, 0.895)),
        (regression, b"mean absolute error", (2.5, 2.25)),
    ],
)
def test_the_axis_says_what_was_measured(reports: ReportFolder, kind: Any, words: bytes, values: Any) -> None:
    (figure,) = figures(reports, kind(reports.slow, values[0]), kind(reports.fast, values[1]))
    assert words in figure
    assert (b"(%)" in figure) is (kind is evaluation)


def test_the_numbers_are_those_of_the_table(reports: ReportFolder) -> None:
    written = [reports.write(f"{place}.json", one) for place, one in enumerate(
        [evaluation(reports.slow, 0.9), evaluation(reports.fast, 0.2)])]  # fmt: skip
    third = reports.write("other.json", evaluation(reports.fast, 0.2))
    decision = decide(
        load_material(reports.sources(benchmarks=(reports.compared(),), evaluations=(*written, third)))
    ).decision
    rows = {row[1].text: row[0].text for row in decision.table("", decision.shown).rows}
    points = {point.label.split(",")[0]: point for _, point in decision.points()}
    assert rows == {"fast.onnx": "1", "slow.onnx": "2"}
    assert {name: str(point.number) for name, point in points.items()} == rows
    assert [name for name, point in points.items() if point.chosen] == ["slow.onnx"], "the fast one loses too much"


def test_figures_of_two_tasks_are_not_compared(reports: ReportFolder) -> None:
    assert figures(reports, evaluation(reports.slow, 0.9), labelled(reports.fast, 0.8)) == []


def test_with_tune_the_points_are_its_candidates(reports: ReportFolder) -> None:
    """Those of benchmark were timed at another moment: the page does not mix them."""
    tune = tuned(reports, chosen=trial(reports))
    material = load_material(
        reports.sources(benchmarks=(reports.compared(),), tunings=(tune,), evaluations=reports.evaluated(0.9, 0.8))
    )
    points = [point for _, point in decide(material).decision.points()]
    assert [(point.label, point.latency_ms, point.merit) for point in points] == [
        ("slow.onnx, onnxruntime, 1 thread", 5.5, 0.91)
    ]


def test_without_accuracy_there_is_none(reports: ReportFolder) -> None:
    assert figures(reports) == []

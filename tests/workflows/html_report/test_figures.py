"""The figures of the page: latency against each kind of accuracy that was measured."""

from __future__ import annotations

from typing import Any

import pytest

from densenet_deploy.workflows.html_report.figures import Figures
from densenet_deploy.workflows.html_report.load import load_material
from densenet_deploy.workflows.html_report.page import Figure
from tests.workflows.html_report.conftest import ReportFolder, evaluation
from tests.workflows.html_report.test_decide import labelled, trial, tuned


def figures(reports: ReportFolder, *evaluations: dict[str, Any], **given: Any) -> list[bytes]:
    written = tuple(reports.write(f"{place}.json", one) for place, one in enumerate(evaluations))
    material = load_material(reports.sources(benchmarks=(reports.compared(),), evaluations=written, **given))
    found = Figures(material).pareto()
    assert all(isinstance(one, Figure) for one in found)
    return [one.svg for one in found if isinstance(one, Figure)]


@pytest.mark.parametrize(
    ("kind", "words", "value"),
    [(evaluation, b"top-1 accuracy (%)", b"89.50 %"), (labelled, b"mean AUROC of the labels (%)", b"89.50 %")],
)
def test_the_axis_says_what_was_measured(reports: ReportFolder, kind: Any, words: bytes, value: bytes) -> None:
    (figure,) = figures(reports, kind(reports.slow, 0.9), kind(reports.fast, 0.895))
    assert (words in figure, value in figure) == (True, True)


def test_every_kind_has_its_figure(reports: ReportFolder) -> None:
    first, second = figures(reports, evaluation(reports.slow, 0.9), labelled(reports.fast, 0.8))
    assert (b"90.00 %" in first, b"80.00 %" in first) == (True, False)
    assert (b"90.00 %" in second, b"80.00 %" in second) == (False, True)


def test_points_of_tune_are_marked_where_there_are_others(reports: ReportFolder) -> None:
    tune = tuned(reports, chosen=trial(reports), reason="the shortest call of 2 candidates")
    (figure,) = figures(reports, evaluation(reports.slow, 0.9), tunings=(tune,))
    assert b"by tune" in figure
    (figure,) = figures(reports, evaluation(reports.slow, 0.9))
    assert b"by tune" not in figure


def test_without_accuracy_there_is_none(reports: ReportFolder) -> None:
    assert figures(reports) == []

"""Reports of other commands are read only where every value has the right type; the error names the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.reports import Report
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.load import ReportSources, load_material
from densenet_deploy.workflows.quantize.quantize import QuantizeReport
from densenet_deploy.workflows.sensitivity import SensitivityReport
from densenet_deploy.workflows.tune.report import TuneReport
from tests.workflows.html_report.conftest import ReportFolder, machine, result

RESULT = result("a.onnx", 1.5, "0" * 64)


def written(tmp_path: Path, report: object) -> Path:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    return path


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"batch": "one"}, "results[0].batch"),
        ({"batch": True}, "results[0].batch"),
        ({"model": 3}, "results[0].model"),
        ({"latency_ms": 3}, "results[0].latency_ms"),
        ({"latency_ms": {}}, "results[0].latency_ms.mean"),
        ({"rounds_ms": 3}, "results[0].rounds_ms"),
        ({"rounds_ms": [1, "x"]}, "results[0].rounds_ms[1]"),
        ({"interval_ms": [1, float("inf")]}, None),
    ],
)
def test_a_value_of_the_wrong_type_is_named(change: dict[str, object], where: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, {"results": [RESULT | change], "machine": machine()})
    with pytest.raises(DataError) as caught:
        BenchmarkReport.read(path)
    assert caught.value.subject == str(path)
    assert where is None or f"{where} is" in caught.value.why, "infinity is not JSON, so nothing in the file is read"


@pytest.mark.parametrize(
    "kind", [BenchmarkReport, EvaluateReport, ComparisonReport, QuantizeReport, SensitivityReport, TuneReport]
)
def test_the_report_of_another_command_is_refused(kind: type[Report], tmp_path: Path) -> None:
    for content in ({"schema": 1}, [1]):
        path = written(tmp_path, content)
        with pytest.raises(DataError) as caught:
            kind.read(path)
        assert caught.value.subject == str(path)


def test_a_dry_run_of_tune_is_refused(reports: ReportFolder) -> None:
    tune = reports.write("tune.json", {"chosen": None, "pareto": [], "dry_run": True})
    with pytest.raises(DataError) as caught:
        load_material(reports.sources(tunings=(tune,)))
    assert caught.value.subject == str(tune)


def test_two_models_with_the_same_file_name_are_refused(reports: ReportFolder) -> None:
    with pytest.raises(UsageError) as caught:
        load_material(ReportSources((reports.slow, reports.slow)))
    assert caught.value.subject == "slow.onnx"
    with pytest.raises(UsageError):
        ReportSources(())
    with pytest.raises(UsageError):
        reports.sources(max_drop=-1.0)

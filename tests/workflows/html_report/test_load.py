"""Reports of other commands are read only where every value has the right type; the error names the value."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.graph.layer_precision import LayerPrecision
from densenet_deploy.model import Model
from densenet_deploy.reports import Report
from densenet_deploy.workflows.benchmark import BenchmarkReport
from densenet_deploy.workflows.compare import ComparisonReport
from densenet_deploy.workflows.evaluation.report import EvaluateReport
from densenet_deploy.workflows.html_report.load import FileFacts, ModelSummary, ReportSources, load_material
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize.quantize import QuantizeReport
from densenet_deploy.workflows.sensitivity import SensitivityReport
from densenet_deploy.workflows.tune.report import TuneReport
from tests.runtime.plans import plan_bytes, sidecar_of, write_engine
from tests.workflows.html_report.conftest import ReportFolder, evaluation, machine, result

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


def summary(model: Path | Model, folder: Path = Path("of nothing")) -> ModelSummary:
    (found,) = load_material(ReportSources((model,)), folder).models
    return found


def files(found: ModelSummary) -> list[Path]:
    assert found.files == tuple(FileFacts.of(one.path) for one in found.files)
    return [one.path for one in found.files]


def test_an_engine_is_shown_with_its_sidecar_and_what_was_read_back(tiny_onnx: Path, tmp_path: Path) -> None:
    path, plan = tmp_path / "tiny.engine", plan_bytes(b"ftrt", mask=0)
    manifest = load(tiny_onnx).manifest
    write_engine(path, plan, sidecar_of(plan, precision="int8", manifest=manifest, convolutions={"a": "int8"}))
    found = summary(path)
    assert (found.kind, found.precision, found.manifest) == ("engine", "int8", manifest)
    assert files(found) == [path, tmp_path / "tiny.engine.json"]
    assert found.layers == (LayerPrecision("a", "convolution", "int8"),)
    assert found.architecture.parameters == summary(tiny_onnx).architecture.parameters
    assert "the inspector when it was built" in found.evidence
    (tmp_path / "tiny.engine.json").unlink()
    assert (files(summary(path)), summary(path).precision) == ([path], "unknown")


def test_a_file_of_openvino_is_shown_with_its_weights_and_is_not_analysed(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text('<?xml version="1.0"?><net name="n" version="11"></net>')
    path.with_suffix(".bin").write_bytes(b"weights")
    found = summary(path)
    assert (found.kind, found.precision, found.layers, found.architecture) == ("openvino", "unknown", (), None)
    assert files(found) == [path, tmp_path / "model.bin"]
    assert "not analysed" in found.evidence


def test_a_checkpoint_is_one_file(checkpoint: Path) -> None:
    found = summary(checkpoint)
    assert (found.kind, found.precision, found.layers, files(found)) == ("checkpoint", "fp32", (), [checkpoint])


def test_a_model_is_shown_by_its_name_whether_it_has_a_file_or_not(tiny_onnx: Path, tmp_path: Path) -> None:
    on_disk = summary(load(tiny_onnx).replaced(name="mine"))
    assert (on_disk.alias, on_disk.temporary, files(on_disk)) == ("mine", None, [tiny_onnx])
    in_memory = summary(Model.from_bytes("mine", tiny_onnx.read_bytes()), tmp_path)
    assert in_memory.temporary == tmp_path / "mine.onnx"
    assert (in_memory.alias, [one.path for one in in_memory.files]) == ("mine", [Path("mine.onnx")])
    assert in_memory.files[0].sha256 == on_disk.files[0].sha256


def test_what_a_missing_package_would_read_is_said(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = summary(tiny_onnx)
    assert (found.kind, found.precision, found.layers, found.architecture) == ("onnx", "fp32", (), None)
    assert found.notes == (found.evidence,)
    assert "onnx" in found.evidence


@pytest.mark.parametrize(
    "changes",
    [
        {"interval_ms": [2.2, 1.8]},
        {"interval_ms": [0.0, 2.2]},
        {"latency_ms": {"mean": 2.0, "p50": -2.0, "p90": 2.0, "p95": 2.0, "p99": 2.0}},
    ],
)
def test_times_that_are_none_are_refused(reports: ReportFolder, changes: dict[str, object]) -> None:
    row = result(reports.slow, 2.0, reports.hash(reports.slow))
    load_material(reports.sources(benchmarks=(reports.benchmark(row),)))
    with pytest.raises(DataError) as caught:
        load_material(reports.sources(benchmarks=(reports.benchmark(row | changes),)))
    assert "results[0].interval_ms" in caught.value.why


@pytest.mark.parametrize("changes", [{"top1": 1.01}, {"top1": -0.01}, {"count": 0}])
def test_fractions_and_counts_that_are_none_are_refused(reports: ReportFolder, changes: dict[str, object]) -> None:
    facts = evaluation(reports.slow, 1.0, 1)
    load_material(reports.sources(evaluations=(reports.write("evaluate.json", facts),)))
    with pytest.raises(DataError) as caught:
        load_material(reports.sources(evaluations=(reports.write("evaluate.json", facts | changes),)))
    assert next(iter(changes)) in caught.value.why

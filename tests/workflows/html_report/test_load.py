"""Reports of other commands are read only where every value has the right type; the error names the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.workflows.html_report.load import (
    Benchmark,
    Evaluation,
    Quantization,
    ReportFile,
    ReportSources,
    SensitivityFile,
    Tuning,
    Validation,
    load_material,
)
from tests.workflows.html_report.conftest import ReportFolder

BENCHMARK = {"model": "a.onnx", "backend": "b", "precision": "fp32", "batch": 1, "latency_ms": {"p50": 1.5}}


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
        ({"latency_ms": {}}, "results[0].latency_ms.p50"),
        ({"rounds_ms": 3}, "results[0].rounds_ms"),
        ({"rounds_ms": [1, "x"]}, "results[0].rounds_ms[1]"),
        ({"interval_ms": [1, float("inf")]}, None),
    ],
)
def test_a_value_of_the_wrong_type_is_named(change: dict[str, object], where: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, {"results": [BENCHMARK | change]})
    with pytest.raises(DataError) as caught:
        Benchmark.read(path)
    assert caught.value.subject == str(path)
    assert where is None or f"{where} is" in caught.value.why, "infinity is not JSON, so nothing in the file is read"


def test_what_may_be_missing_is_unknown(tmp_path: Path) -> None:
    benchmark = Benchmark.read(written(tmp_path, {"results": [BENCHMARK]}))
    (measured,) = benchmark.results
    assert (measured.median_ms, measured.interval_ms, measured.latency_ms.p90, measured.threads) == (
        1.5,
        None,
        None,
        None,
    )
    assert benchmark.machine is None


def test_the_median_is_that_of_the_rounds(tmp_path: Path) -> None:
    """The interval belongs to it, and may not hold the median of all calls."""
    row = BENCHMARK | {"rounds_ms": [5, 1, 3], "interval_ms": [1, 5]}
    (measured,) = Benchmark.read(written(tmp_path, {"results": [row]})).results
    assert (measured.median_ms, measured.interval_ms) == (3.0, (1.0, 5.0))


@pytest.mark.parametrize("kind", [Benchmark, Evaluation, Validation, Quantization, SensitivityFile, Tuning])
def test_the_report_of_another_command_is_refused(kind: type[ReportFile], tmp_path: Path) -> None:
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

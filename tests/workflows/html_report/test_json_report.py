"""What commands printed is believed only where it is of the right type, and the error says where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.workflows.html_report.inputs import Accuracy, Benchmark, Quantization, Validation
from densenet_deploy.workflows.html_report.tuning import Tuning

BENCHMARK = {"model": "a.onnx", "backend": "b", "precision": "fp32", "batch": 1, "latency_ms": {"p50": 1.5}}


def written(tmp_path: Path, report: object) -> Path:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": "one"}, r"results\[0\]\.batch is 'one', not a number"),
        ({"batch": True}, "not a number"),
        ({"model": 3}, r"results\[0\]\.model is 3, not text"),
        ({"latency_ms": 3}, "not an object"),
        ({"latency_ms": {}}, r"results\[0\]\.latency_ms\.p50 is None, not a number"),
        ({"rounds_ms": 3}, "not a list"),
        ({"rounds_ms": [1, "x"]}, "not a number"),
        ({"interval_ms": [1, float("inf")]}, "not a number"),
    ],
)
def test_a_wrong_type_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        Benchmark.read(written(tmp_path, {"results": [BENCHMARK | change]}))


def test_what_may_be_missing_is_unknown(tmp_path: Path) -> None:
    benchmark = Benchmark.read(written(tmp_path, {"results": [BENCHMARK]}))
    (measured,) = benchmark.results
    assert (measured.median, measured.interval, measured.p90, measured.threads) == (1.5, None, None, None)
    assert benchmark.machine is None


def test_the_median_is_that_of_the_rounds(tmp_path: Path) -> None:
    """The interval belongs to it, and may not hold the median of all calls."""
    row = BENCHMARK | {"rounds_ms": [5, 1, 3], "interval_ms": [1, 5]}
    (measured,) = Benchmark.read(written(tmp_path, {"results": [row]})).results
    assert (measured.median, measured.interval, measured.rounds) == (3.0, (1.0, 5.0), 3)


@pytest.mark.parametrize(
    ("read", "command"),
    [
        (Benchmark.read, "benchmark"),
        (Accuracy.read, "evaluate"),
        (Validation.read, "validate"),
        (Quantization.read, "quantize"),
        (Tuning.read, "tune"),
    ],
)
def test_the_report_of_another_command_is_refused(read: Callable[[Path], object], command: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"is no report of {command}: it has no .*{command} printed with --json"):
        read(written(tmp_path, {"schema": 1}))
    with pytest.raises(DataError, match="is no JSON object"):
        read(written(tmp_path, [1]))

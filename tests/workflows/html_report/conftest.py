"""Reports as commands print them, about the tiny model and a copy of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.analysis.accuracy import Confusion
from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.machine import Machine
from densenet_deploy.bench.measurement import Measurement
from densenet_deploy.parity.compare import Parity
from densenet_deploy.records import to_plain
from densenet_deploy.runtime.timing import LatencySummary
from densenet_deploy.workflows.compare import ComparisonReport, LayerParity
from densenet_deploy.workflows.evaluation.report import ClassResult, EvaluateReport
from densenet_deploy.workflows.html_report.load import ReportSources


def result(model: Path | str, median: float, sha256: str, **changes: Any) -> dict[str, Any]:
    measurement = Measurement(
        model=str(model),
        sha256=sha256,
        backend="openvino",
        version="2026.0",
        device="cpu",
        provider="CPU",
        precision="fp32",
        batch=1,
        threads=2,
        streams=1,
        scenario="single-stream",
        latency_ms=LatencySummary(median, median, 1.1 * median, 1.2 * median, 1.3 * median),
        interval_ms=(0.9 * median, 1.1 * median),
        rounds_ms=(0.9 * median, median, 1.1 * median),
        images_per_second=1000 / median,
        peak_memory_bytes=3 * 2**20,
        device_memory_bytes=None,
        load_ms=120.0,
        first_ms=7.0,
        calls=30,
        variation=0.1,
        call_variation=0.1,
        outside_share=None,
        warm_up_rounds=1,
        steady=True,
        camera=None,
    )
    return {**to_plain(measurement), **changes}


def machine() -> dict[str, Any]:
    facts = Machine("A CPU of 1999", 3, "Linux", "3.11.9", {"numpy": "2.4.6"}, "2026-01-02", None)
    return dict(to_plain(facts))


def evaluation(model: Path | str, top1: float, count: int = 200) -> dict[str, Any]:
    return EvaluateReport(
        model=str(model),
        task="multiclass",
        count=count,
        top1=top1,
        top5=None,
        images_per_second=50.0,
        seconds=4.0,
        calibration_error=0.0321,
        reliability=(),
        classes=(ClassResult(0, 50, 41, 48, "cat", 0.82), ClassResult(1, 9, 9, 9, None, 1.0)),
        confusion=(Confusion(0, 1, 7), Confusion(1, 1, 9)),
        bad=(),
        backend="openvino",
        device="cpu",
        precision="fp32",
    ).to_json()


def parity(sqnr_db: float = 43.21) -> dict[str, Any]:
    return Parity(0.1234, 0.01, 0.1, 0.01, 0.987654, sqnr_db, 31.5, 0.75, None, 100).to_json()


def validation(reference: Path, candidate: Path, *, passed: bool = True) -> dict[str, Any]:
    ran = ": openvino 2026.0, CPU, cpu, int8, 2 threads"
    on = ": onnxruntime 1.31, CPUExecutionProvider, cpu, fp32, 1 thread"
    return ComparisonReport(
        reference=f"{reference}{on}",
        candidate=f"{candidate}{ran}",
        outputs={"logits": Parity.from_json(parity())},
        passed=passed,
        failed=() if passed else ("cosine 0.9 is below 0.99",),
        worst_layers=(LayerParity("features.norm0", Parity.from_json(parity(12.34))),),
    ).to_json()


@dataclass
class ReportFolder:
    """Two models, a folder, and a place to write reports to."""

    folder: Path
    slow: Path
    fast: Path

    def write(self, name: str, facts: object) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(facts))
        return path

    def hash(self, model: Path) -> str:
        return sha256_of(model)

    def benchmark(self, *results: dict[str, Any], notes: tuple[str, ...] = ()) -> Path:
        return self.write("benchmark.json", {"results": results, "machine": machine(), "notes": notes})

    def compared(self, slow: float = 4.0, fast: float = 2.0) -> Path:
        return self.benchmark(
            result(self.slow, slow, self.hash(self.slow)), result(self.fast, fast, self.hash(self.fast))
        )

    def evaluated(self, slow: float, fast: float) -> tuple[Path, Path]:
        return (
            self.write("slow.json", evaluation(self.slow, slow)),
            self.write("fast.json", evaluation(self.fast, fast)),
        )

    def sources(self, **given: Any) -> ReportSources:
        return ReportSources((self.slow, self.fast), **given)


@pytest.fixture
def reports(tiny_onnx: Path, tmp_path: Path) -> ReportFolder:
    return two_models(tiny_onnx, tmp_path)


def two_models(tiny_onnx: Path, folder: Path) -> ReportFolder:
    """The same model twice in `folder`, under two names."""
    slow, fast = folder / "slow.onnx", folder / "fast.onnx"
    for path in (slow, fast):
        shutil.copy(tiny_onnx, path)
    return ReportFolder(folder, slow, fast)

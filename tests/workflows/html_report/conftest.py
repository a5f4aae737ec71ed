"""Reports as commands print them, about the tiny model and a copy of it that another backend runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.artifacts import sha256_of
from densenet_deploy.workflows.html_report.load import ReportSources


def result(model: Path | str, median: float, sha256: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(model), "sha256": sha256, "backend": "openvino", "device": "cpu", "precision": "fp32", "batch": 1,
        "threads": 2, "streams": 1, "scenario": "single-stream",
        "latency_ms": {"mean": median, "p50": median, "p90": 1.1 * median, "p95": 1.2 * median, "p99": 1.3 * median},
        "interval_ms": [0.9 * median, 1.1 * median], "rounds_ms": [0.9 * median, median, 1.1 * median],
        "images_per_second": 1000 / median, "peak_memory_bytes": 3 * 2**20, "device_memory_bytes": None,
        "load_ms": 120.0, "first_ms": 7.0, "camera": None,
    } | changes  # fmt: skip


def machine(**changes: Any) -> dict[str, Any]:
    return {
        "cpu": "A CPU of 1999",
        "usable_cpus": 3,
        "python": "3.11.9",
        "versions": {"numpy": "2.4.6"},
        "gpus": [],
    } | changes


def evaluation(model: Path | str, top1: float, count: int = 200) -> dict[str, Any]:
    classes = [
        {"index": 0, "label": "cat", "count": 50, "right": 41},
        {"index": 1, "label": None, "count": 9, "right": 9},
    ]
    confusion = [{"truth": 0, "predicted": 1, "count": 7}, {"truth": 1, "predicted": 1, "count": 9}]
    return {"model": str(model), "top1": top1, "top5": None, "count": count, "calibration_error": 0.0321,
            "classes": classes, "confusion": confusion, "bad": [],
            "backend": "openvino", "precision": "fp32"}  # fmt: skip


def parity(sqnr_db: float | None = 43.21) -> dict[str, Any]:
    return {"sqnr_db": sqnr_db, "cosine": 0.987654, "max_abs": 0.1234, "top1_agreement": 0.75}


def validation(reference: Path, candidate: Path, *, passed: bool = True) -> dict[str, Any]:
    ran = ": openvino 2026.0, CPU, cpu, int8, 2 threads"
    on = ": onnxruntime 1.31, CPUExecutionProvider, cpu, fp32, 1 threads"
    return {"reference": f"{reference}{on}", "candidate": f"{candidate}{ran}",
            "parity": parity(), "passed": passed, "failed": [] if passed else ["cosine 0.9 is below 0.99"],
            "worst_layers": [{"name": "features.norm0", **parity(12.34)}]}  # fmt: skip


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
    slow, fast = tmp_path / "slow.onnx", tmp_path / "fast.onnx"
    for path in (slow, fast):
        shutil.copy(tiny_onnx, path)
    return ReportFolder(tmp_path, slow, fast)

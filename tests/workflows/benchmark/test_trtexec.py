"""Plans timed like `trtexec`: the report and its lines, on the simulated GPU; a reason where there is no GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from densenet_deploy.errors import BackendError, DeviceError, ModelFileError, UsageError
from densenet_deploy.workflows.benchmark.trtexec import TrtexecOptions, benchmark_like_trtexec
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour

QUICK = TrtexecOptions(seconds=0.02, warm_up_seconds=0.002)
LATER = Behaviour("tensorrt", (11, 1, 0, 5), has_runtime_config=False)
ENGINES = [FULL, LATER, RTX]


def timed(folder: Path, onnx: Path, behaviour: Behaviour = FULL, options: TrtexecOptions = QUICK, **facts: object):
    engine = write_simulated_engine(folder, onnx, behaviour, **facts)
    with simulated_gpu(behaviour):
        return engine, benchmark_like_trtexec([engine], options)


@pytest.mark.parametrize("behaviour", ENGINES, ids=["10", "11", "rtx"])
def test_a_plan_is_timed_alone_with_copies_and_one_by_one(tmp_path, tiny_onnx, behaviour):
    engine, report = timed(tmp_path, tiny_onnx, behaviour)
    (row,) = json.loads(json.dumps(report.to_json(), allow_nan=False))["results"]
    promised = {"model", "backend", "precision", "batch", "latency_ms", "images_per_second", "peak_memory_bytes"}
    assert promised <= row.keys()
    assert {"mean", "p50", "p90", "p99"} <= row["latency_ms"].keys()
    assert (row["model"], row["backend"], row["precision"]) == (str(engine), behaviour.flavour, "fp32")
    assert (row["gpu"], row["device"], row["compute_capability"]) == ("Simulated GPU", "cuda:0", "8.9")
    assert row["alone"]["gpu_compute_ms"]["median"] == pytest.approx(0.5)
    assert row["alone"]["h2d_ms"] is None
    assert row["copied"]["h2d_ms"]["median"] == pytest.approx(0.25)
    assert row["copied"]["d2h_ms"]["median"] == pytest.approx(0.125)
    assert row["one_by_one"]["latency_ms"]["median"] == pytest.approx(0.875)
    assert row["load_ms"] > 0
    assert row["context_ms"] > 0


def test_the_line_for_trtexec_states_every_default(tmp_path, tiny_onnx):
    engine, report = timed(tmp_path, tiny_onnx)
    row = report.to_json()["results"][0]
    assert row["alone"]["command"] == (
        f"trtexec --loadEngine={engine} --shapes=input:1x3x32x32 --noDataTransfers --useCudaGraph --useSpinWait "
        "--warmUp=2 --duration=0.02 --iterations=10 --percentile=90,95,99"
    )
    assert "--noDataTransfers" not in row["copied"]["command"]
    assert row["alone"]["command"] in report.to_text()


def test_from_11_on_what_became_the_default_is_switched_off_by_name(tmp_path, tiny_onnx):
    _, report = timed(tmp_path, tiny_onnx, LATER)
    row = report.to_json()["results"][0]
    assert "--includeDataTransfers" in row["copied"]["command"]
    assert "--noCudaGraph" not in row["copied"]["command"]


def test_a_plan_that_cannot_be_recorded_says_so_and_so_does_its_line(tmp_path, tiny_onnx):
    _, report = timed(tmp_path, tiny_onnx, dataclasses.replace(LATER, capturable=False))
    row = report.to_json()["results"][0]
    assert row["alone"]["cuda_graph"] is False
    assert row["alone"]["no_cuda_graph"]
    assert "--noCudaGraph" in row["alone"]["command"]
    assert "--useCudaGraph" not in row["alone"]["command"]


def test_a_fixed_batch_needs_no_shape(tmp_path, tiny_onnx):
    _, report = timed(tmp_path, tiny_onnx, profiles=((1, 1, 1),))
    assert "--shapes" not in report.to_json()["results"][0]["alone"]["command"]


def test_a_batch_that_the_plan_does_not_take_is_left_out_with_a_note(tmp_path, tiny_onnx):
    _, report = timed(tmp_path, tiny_onnx, options=TrtexecOptions((2, 9), 0.02, 0.002))
    assert [result.batch for result in report.results] == [2]
    assert any("takes batches of 1 to 8, not 9; left out" in note for note in report.notes)
    with pytest.raises(BackendError, match="not 9"):
        timed(tmp_path, tiny_onnx, options=TrtexecOptions((9,), 0.02, 0.002))


def test_what_bounds_a_result_is_among_the_notes(tmp_path, tiny_onnx):
    engine = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with simulated_gpu(FULL) as cuda:
        cuda.durations |= {"upload": 2.0}
        report = benchmark_like_trtexec([engine], QUICK)
        assert cuda.wait_flags == 1, "the CPU spins while it waits, as the line says"
    (copies,) = (note for note in report.notes if "bound by copies" in note)
    assert copies.startswith(f"{engine.name}, batch 1: ")


def test_reports_are_written_as_json_and_csv(tmp_path, tiny_onnx):
    engine = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with simulated_gpu(FULL):
        for name in ("r.json", "r.csv"):
            report = benchmark_like_trtexec([engine], QUICK, str(tmp_path / name))
            assert report.file == tmp_path / name
            assert f"wrote {report.file}" in report.to_text()
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["batch"] == 1
    header = (tmp_path / "r.csv").read_text().splitlines()[0].split(",")
    assert {"model", "alone.gpu_compute_ms.median", "copied.h2d_ms.p99", "alone.enqueue_ms.mean"} <= set(header)


def test_without_a_gpu_the_reason_is_told(tmp_path, tiny_onnx):
    engine = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    for machine in (SimulatedMachine(has_driver=False), SimulatedMachine(gpus=0)):
        with simulated_gpu(FULL, machine), pytest.raises(DeviceError, match=r"no NVIDIA GPU answers|finds no GPU"):
            benchmark_like_trtexec([engine], QUICK)


def test_other_files_and_devices_are_refused(tmp_path, tiny_onnx):
    with pytest.raises(ModelFileError, match="is no TensorRT plan"):
        benchmark_like_trtexec([tiny_onnx], QUICK)
    engine = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with simulated_gpu(FULL):
        with pytest.raises(DeviceError, match="cpu: is no NVIDIA GPU"):
            benchmark_like_trtexec([engine], TrtexecOptions(device="cpu"))
        with pytest.raises(DeviceError, match="cuda:3"):
            benchmark_like_trtexec([engine], TrtexecOptions(device="cuda:3"))
        engine.with_name(f"{engine.name}.json").unlink()
        with pytest.raises(ModelFileError, match="sidecar"):
            benchmark_like_trtexec([engine], QUICK)


@pytest.mark.parametrize("facts", [{"seconds": -1.0}, {"batches": (0,)}, {"warm_up_seconds": float("nan")}])
def test_options_that_cannot_be_meant(facts):
    with pytest.raises(UsageError):
        TrtexecOptions(**facts)

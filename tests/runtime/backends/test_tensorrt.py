"""The TensorRT backends on a simulated GPU: what is refused, what is run where, and what is given back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.cli import main
from densenet_deploy.errors import (
    BackendError,
    DensenetDeployError,
    DeviceError,
    ManifestError,
    MissingPackageError,
    ModelFileError,
    ResourceError,
)
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.nvidia import NvidiaOptions, find_gpus
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.runtime.trt import load_tensorrt
from densenet_deploy.workflows.doctor import diagnose
from tests.runtime.conftest import float32_plan
from tests.runtime.plans import sidecar_of, write_engine
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine, cudaError_t
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour

# the simulation computes with ONNX Runtime, whose kernels sum otherwise for another batch: 100 roundings near 1
TOLERANCE = 1e-5
TRUST = RunnerOptions(trust_engine=True)


def batch(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


@pytest.fixture(params=[RTX, FULL], ids=["rtx", "tensorrt"])
def flavour(request: pytest.FixtureRequest) -> Behaviour:
    return request.param


@pytest.fixture
def gpu(flavour: Behaviour) -> Iterator[SimulatedCuda]:
    with simulated_gpu(flavour) as cuda:
        yield cuda


@pytest.fixture
def full_gpu() -> Iterator[SimulatedCuda]:
    with simulated_gpu(FULL) as cuda:
        yield cuda


@pytest.fixture
def engine(tmp_path: Path, tiny_onnx: Path, flavour: Behaviour) -> Path:
    return write_simulated_engine(tmp_path, tiny_onnx, flavour)


@pytest.fixture(scope="module")
def expected(tiny_onnx: Path) -> Callable[[np.ndarray], np.ndarray]:
    runner = open_runner(tiny_onnx, "onnxruntime", "cpu")
    return lambda feed: runner.run({"input": feed})["logits"]


def test_the_header_decides_which_backend(gpu: SimulatedCuda, engine: Path, flavour: Behaviour) -> None:
    with open_runner(engine) as runner:
        assert runner.name == flavour.flavour
        assert "Simulated GPU (8.9)" in runner.placement.provider
        assert runner.placement.version == ".".join(map(str, flavour.version))


# Bad inputs 22 to 26, 59


def test_another_version_is_refused_and_named(gpu: SimulatedCuda, flavour: Behaviour, tmp_path, tiny_onnx) -> None:
    older = dataclasses.replace(flavour, version=(9, 1, 0, 5))
    path = write_simulated_engine(tmp_path, tiny_onnx, older)
    with pytest.raises(BackendError) as caught:
        open_runner(path)
    assert caught.value.subject.endswith("tiny.engine")
    assert caught.value.exit_code == 5


def test_another_flavour_is_refused_and_named(full_gpu: SimulatedCuda, tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    with pytest.raises(BackendError) as caught:
        open_runner(path, "tensorrt")
    assert caught.value.subject.endswith("tiny.engine")


@pytest.mark.skipif(is_installed("tensorrt"), reason="full TensorRT is installed")
def test_a_flavour_that_is_not_installed_is_named(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with pytest.raises(MissingPackageError) as caught:
        open_runner(path, "tensorrt")
    assert caught.value.subject == "tensorrt"


def test_another_compute_capability_is_refused(flavour: Behaviour, engine: Path) -> None:
    with simulated_gpu(flavour, SimulatedMachine(compute_capability=(9, 0))) as cuda:
        with pytest.raises(DeviceError) as caught:
            open_runner(engine)
        assert caught.value.subject.endswith("tiny.engine")
        assert cuda.in_use()["memory"] == 0
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:100], lambda d: d[:60] + b"\1" + d[61:]])
def test_a_changed_plan_is_refused_before_anything_runs(gpu: SimulatedCuda, engine: Path, change) -> None:
    engine.write_bytes(change(engine.read_bytes()))
    for options in (None, TRUST):
        with pytest.raises(ModelFileError) as caught:
            open_runner(engine, options=options)
        assert caught.value.subject.endswith("tiny.engine")
        assert caught.value.exit_code == 3
    assert gpu.calls == []


def test_an_engine_without_a_sidecar_is_refused_without_trust(gpu: SimulatedCuda, engine: Path, expected) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(ModelFileError) as caught:
        open_runner(engine)
    assert caught.value.subject.endswith("tiny.engine")
    assert gpu.calls == []
    with open_runner(engine, options=TRUST) as runner:
        assert (runner.placement.precision, runner.manifest) == ("unknown", None)
        np.testing.assert_allclose(runner.run({"input": batch(2)})["logits"], expected(batch(2)), atol=TOLERANCE)


def test_a_broken_sidecar_is_not_trusted(gpu: SimulatedCuda, engine: Path) -> None:
    sidecar_path(engine).write_text("{")
    with pytest.raises(ManifestError):
        open_runner(engine, options=TRUST)
    assert gpu.calls == []


def test_a_trusted_plan_that_tensorrt_refuses_is_a_sentence(full_gpu, tmp_path: Path, tiny_onnx: Path) -> None:
    """Without a sidecar a header alone decides, and what it does not say TensorRT does."""
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    path.write_bytes(path.read_bytes() + b"more")
    sidecar_path(path).unlink()
    with pytest.raises(BackendError) as caught:
        open_runner(path, options=TRUST)
    assert caught.value.subject.endswith("tiny.engine")


def test_no_driver_is_a_device_error(flavour: Behaviour, engine: Path) -> None:
    with simulated_gpu(flavour, SimulatedMachine(has_driver=False)), pytest.raises(DeviceError) as caught:
        open_runner(engine)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_is_not_there_is_never_replaced(gpu: SimulatedCuda, engine: Path, device) -> None:
    with pytest.raises(DeviceError) as caught:
        open_runner(engine, device=device)
    assert caught.value.subject == device


def test_another_precision_is_refused(gpu: SimulatedCuda, engine: Path) -> None:
    with open_runner(engine, options=RunnerOptions(precision="fp32")) as runner:
        assert runner.placement.precision == "fp32"
    with pytest.raises(BackendError) as caught:
        open_runner(engine, options=RunnerOptions(precision="fp16"))
    assert caught.value.subject == "fp16"


def test_the_placement_says_what_convolutions_run_in(gpu: SimulatedCuda, flavour, tmp_path, tiny_onnx) -> None:
    ran = {"stem": "fp16", "conv1": "int8", "conv2": "int8", "fused": "unknown"}
    path = write_simulated_engine(tmp_path, tiny_onnx, flavour, precision="int8", convolutions=ran)
    with open_runner(path) as runner:
        assert runner.placement.precision == "int8"
        assert runner.placement.notes[0] == "convolutions: 2 int8, 1 fp16"
    silent = write_simulated_engine(tmp_path, tiny_onnx, flavour, precision="fp16", convolutions={"a": "unknown"})
    with open_runner(silent) as runner:
        assert runner.placement.precision == "fp16"
        assert "convolutions" not in str(runner.placement)


def test_a_real_plan_without_a_gpu_is_a_device_error(tiny_onnx: Path, tmp_path: Path) -> None:
    """The whole way down to the real libraries."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    if find_gpus():
        pytest.skip("this machine has a GPU")
    plan = float32_plan(load_tensorrt("rtx"), tiny_onnx.read_bytes())
    path = tmp_path / "tiny.engine"
    write_engine(path, plan, sidecar_of(plan, precision="fp32"))
    with pytest.raises(DeviceError) as caught:
        open_runner(path)
    assert caught.value.subject == "cuda"
    path.write_bytes(plan[:-1])
    with pytest.raises(ModelFileError) as caught:
        open_runner(path)
    assert caught.value.subject.endswith("tiny.engine")


@pytest.mark.parametrize("compatible", [True, False])
def test_host_code_is_allowed_to_plans_that_carry_it_and_no_others(
    gpu, flavour, tmp_path, tiny_onnx, compatible
) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, flavour, version_compatible=compatible)
    open_runner(path).close()
    assert gpu.runtimes[0].engine_host_code_allowed is compatible


def test_the_runtime_gets_what_only_the_build_knew(gpu, flavour, tmp_path, tiny_onnx) -> None:
    open_runner(write_simulated_engine(tmp_path, tiny_onnx, flavour, options={"dla": 1})).close()
    assert gpu.runtimes[0].DLA_core == 1
    open_runner(write_simulated_engine(tmp_path, tiny_onnx, flavour, options={"dla": None})).close()
    assert gpu.runtimes[0].DLA_core == -1


def test_a_plan_without_weights_is_refused(gpu, flavour, tmp_path, tiny_onnx) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, flavour, options={"strip_weights": True})
    with pytest.raises(ModelFileError) as caught:
        open_runner(path)
    assert caught.value.subject.endswith("tiny.engine")


# Memory


def test_memory_that_runs_out_is_a_resource_error(flavour: Behaviour, engine: Path) -> None:
    with simulated_gpu(flavour, SimulatedMachine(memory_bytes=1000)) as cuda:
        with pytest.raises(ResourceError) as caught:
            open_runner(engine)
        assert caught.value.subject == "GPU memory"
        assert caught.value.exit_code == 6
        del caught
        assert cuda.in_use() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0}


def test_memory_that_tensorrt_lacks_is_a_resource_error(gpu: SimulatedCuda, engine: Path) -> None:
    gpu.fail_next["create_execution_context"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match="OutOfMemory"):
        open_runner(engine)


def test_everything_is_given_back(gpu: SimulatedCuda, engine: Path) -> None:
    runner = open_runner(engine)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: runner.run({"input": batch(1 + i % 9)}), range(20)))
    assert gpu.in_use()["memory"] > 0
    runner.close()
    assert gpu.in_use() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0}


def test_memory_is_one_where_the_gpu_shares_it(flavour: Behaviour, engine: Path, expected) -> None:
    with simulated_gpu(flavour, SimulatedMachine(integrated=True)) as cuda, open_runner(engine) as runner:
        for count in (2, 2, 2, 5):
            feed = batch(count, count)
            np.testing.assert_allclose(runner.run({"input": feed})["logits"], expected(feed), atol=TOLERANCE)
        assert "cudaMemcpyAsync" not in cuda.calls
        assert "cudaMalloc" not in cuda.calls


# Batches and profiles


@pytest.mark.parametrize(
    "profiles",
    [((1, 2, 8),), ((1, 1, 1), (4, 8, 8)), ((4, 4, 4), (16, 16, 16)), ((3, 5, 7),)],
    ids=str,
)
def test_any_batch_runs(gpu: SimulatedCuda, flavour, tmp_path, tiny_onnx, expected, profiles) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, flavour, profiles)
    with open_runner(path) as runner:
        assert runner.inputs[0].shape == (None, 3, 32, 32)
        for count in (1, 3, 8, 19, 4, 1):
            feed = batch(count, seed=count)
            logits = runner.run({"input": feed})["logits"]
            np.testing.assert_allclose(logits, expected(feed), atol=TOLERANCE)


def test_a_fixed_batch_is_insisted_on(gpu: SimulatedCuda, flavour, tmp_path, tiny_onnx, expected) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, flavour, ((2, 2, 2),))
    with open_runner(path) as runner:
        assert runner.inputs[0].shape == (2, 3, 32, 32)
        np.testing.assert_allclose(runner.run({"input": batch(2)})["logits"], expected(batch(2)), atol=TOLERANCE)
        with pytest.raises(DensenetDeployError) as caught:
            runner.run({"input": batch(3)})
        assert caught.value.subject == "input"


# CUDA graphs


def test_a_batch_seen_twice_runs_as_a_graph(full_gpu: SimulatedCuda, tmp_path, tiny_onnx, expected) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with open_runner(path) as runner:
        assert runner.placement.notes == ("CUDA graphs",)
        full_gpu.calls.clear()
        for seed in range(3):
            feed = batch(2, seed)
            np.testing.assert_allclose(runner.run({"input": feed})["logits"], expected(feed), atol=TOLERANCE)
        assert full_gpu.calls.count("cudaGraphLaunch") == 3
        assert "cudaMemcpyAsync" not in full_gpu.calls


def test_a_graph_goes_before_its_context_changes(full_gpu: SimulatedCuda, tmp_path, tiny_onnx, expected) -> None:
    """Otherwise the simulation says that the graph is another state's."""
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    options = RunnerOptions(nvidia=NvidiaOptions(streams=1))
    with open_runner(path, options=options) as runner:
        for count in (2, 2, 2, 5, 5, 5, 2, 2, 2, 2, 8):
            feed = batch(count, count)
            np.testing.assert_allclose(runner.run({"input": feed})["logits"], expected(feed), atol=TOLERANCE)
        assert full_gpu.in_use()["graphs"] <= 1


def test_two_streams_keep_two_batches_as_graphs(full_gpu: SimulatedCuda, tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    with open_runner(path) as runner:
        for count in (2, 5, 2, 5):
            runner.run({"input": batch(count)})
        full_gpu.calls.clear()
        for count in (2, 5, 2, 5):
            runner.run({"input": batch(count)})
        assert full_gpu.calls.count("cudaGraphLaunch") == 4


def test_graphs_can_be_switched_off(full_gpu: SimulatedCuda, tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    options = RunnerOptions(nvidia=NvidiaOptions(graphs=False))
    with open_runner(path, options=options) as runner:
        assert runner.placement.notes == ("no CUDA graphs: switched off",)
        runner.run({"input": batch(2)})
    assert "cudaStreamBeginCapture" not in full_gpu.calls


def test_a_failed_recording_is_said_and_does_no_harm(tmp_path, tiny_onnx, expected, caplog) -> None:
    stubborn = dataclasses.replace(FULL, capturable=False)
    path = write_simulated_engine(tmp_path, tiny_onnx, stubborn)
    with simulated_gpu(stubborn), open_runner(path) as runner:
        assert "no CUDA graphs: TensorRT cannot run it" in runner.placement.notes[0]
        assert "no CUDA graph for" in caplog.text
        for seed in range(3):
            feed = batch(2, seed)
            np.testing.assert_allclose(runner.run({"input": feed})["logits"], expected(feed), atol=TOLERANCE)


def test_rtx_records_graphs_itself_or_is_asked_first(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    with simulated_gpu(RTX) as cuda, open_runner(path) as runner:
        assert runner.placement.notes == ("CUDA graphs left to TensorRT-RTX",)
        assert "cudaStreamBeginCapture" not in cuda.calls
    older = dataclasses.replace(RTX, has_runtime_config=False, capturable=False)
    with simulated_gpu(older) as cuda, open_runner(path) as runner:
        assert runner.placement.notes == ("no CUDA graphs: TensorRT says that this engine cannot be captured",)
        assert "cudaStreamBeginCapture" not in cuda.calls


# Threads and failures


@pytest.mark.parametrize("streams", [1, 3])
def test_callers_wait_for_a_stream(gpu: SimulatedCuda, engine: Path, streams: int, expected) -> None:
    feeds = [batch(1 + seed % 3, seed) for seed in range(24)]
    options = RunnerOptions(nvidia=NvidiaOptions(streams=streams))
    with open_runner(engine, options=options) as runner, ThreadPoolExecutor(6) as pool:
        for feed, result in zip(
            feeds, pool.map(lambda feed: runner.run({"input": feed})["logits"], feeds), strict=True
        ):
            np.testing.assert_allclose(result, expected(feed), atol=TOLERANCE)
    assert gpu.calls.count("cudaStreamCreateWithFlags") <= streams


def test_a_failed_run_costs_its_execution_context_and_nothing_else(gpu: SimulatedCuda, engine: Path, expected) -> None:
    options = RunnerOptions(nvidia=NvidiaOptions(streams=1))
    with open_runner(engine, options=options) as runner:
        before = gpu.in_use()["memory"]
        gpu.fail_next["cudaStreamSynchronize"] = cudaError_t.cudaErrorInvalidValue
        with pytest.raises(BackendError) as caught:
            runner.run({"input": batch(2)})
        assert caught.value.subject == "CUDA"
        del caught  # its traceback refers to the context
        np.testing.assert_allclose(runner.run({"input": batch(2)})["logits"], expected(batch(2)), atol=TOLERANCE)
        assert gpu.in_use()["memory"] == before


def test_a_lost_gpu_is_said_by_every_later_call(gpu: SimulatedCuda, engine: Path) -> None:
    with open_runner(engine) as runner:
        gpu.fail_next["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
        for _ in range(2):
            with pytest.raises(BackendError) as caught:
                runner.run({"input": batch(2)})
            assert caught.value.subject == "CUDA"


# Kernels that TensorRT-RTX compiles


def test_kernels_are_compiled_once(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "cache"))
    with simulated_gpu(RTX) as cuda:
        open_runner(path, options=options).close()
        assert cuda.calls.count("compile") == 2
        (kernels,) = (tmp_path / "cache").iterdir()
        assert kernels.name.startswith(hashlib.sha256(path.read_bytes()).hexdigest()[:24])
        assert "simulated-gpu-1.7.1.116-13000" in kernels.name
        written = kernels.stat().st_mtime_ns
        open_runner(path, options=options).close()
        assert cuda.calls.count("compile") == 2
        assert kernels.stat().st_mtime_ns == written, "nothing new, nothing written"


def test_kernels_compiled_later_are_kept_at_the_end(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "cache"))
    with simulated_gpu(RTX):
        runner = open_runner(path, options=options)
        (kernels,) = (tmp_path / "cache").iterdir()
        kernels.unlink()
        runner.close()
        assert not kernels.exists(), "nothing new since"
        runner = open_runner(path, options=options)
        before = kernels.read_bytes()
        runner.run({"input": batch(5)})
        runner.close()
        runner.close()
        assert kernels.read_bytes() != before


def test_damaged_kernels_are_compiled_anew(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "cache"))
    with simulated_gpu(RTX) as cuda:
        open_runner(path, options=options).close()
        (kernels,) = (tmp_path / "cache").iterdir()
        good = kernels.read_bytes()
        kernels.write_bytes(b"rubbish")
        open_runner(path, options=options).close()
        assert cuda.calls.count("compile") == 4
        assert kernels.read_bytes() == good


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, RTX)
    (tmp_path / "file").write_text("no folder")
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "file"))
    with simulated_gpu(RTX), open_runner(path, options=options) as runner:
        assert runner.run({"input": batch(1)})["logits"].shape == (1, 10)


def test_full_tensorrt_has_no_such_cache(full_gpu: SimulatedCuda, tmp_path: Path, tiny_onnx: Path) -> None:
    path = write_simulated_engine(tmp_path, tiny_onnx, FULL)
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "cache"))
    open_runner(path, options=options).close()
    assert not (tmp_path / "cache").exists()


# What people see


def test_doctor_names_version_and_devices(flavour: Behaviour) -> None:
    with simulated_gpu(flavour, SimulatedMachine(gpus=2)):
        health = diagnose().backends[flavour.flavour]
    assert (health.available, health.devices, health.reason) == (True, ("cuda:0", "cuda:1"), None)
    assert health.version == ".".join(map(str, flavour.version))


def test_doctor_says_why_nothing_runs(flavour: Behaviour) -> None:
    with simulated_gpu(flavour, SimulatedMachine(has_driver=False)):
        report = diagnose()
    health = report.backends[flavour.flavour]
    assert (health.available, health.devices, health.reason) == (False, (), "finds no cuda device")
    assert health.version in report.to_text()


def test_run_classifies_with_an_engine(gpu: SimulatedCuda, engine: Path, tmp_path: Path, capsys) -> None:
    image = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(image)
    assert main(["run", str(engine), str(image), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"][0]["top"]) == 5
    assert answer["device"] == "cuda:0"
    sidecar_path(engine).unlink()
    assert main(["run", str(engine), str(image)]) == 3
    assert "--trust-engine" in capsys.readouterr().err
    assert main(["run", str(engine), str(image), "--trust-engine"]) == 0
    assert "unknown" in capsys.readouterr().out, "the precision of an engine without a sidecar"

"""The TensorRT backends on a simulated GPU: what is refused before the GPU is touched, and what runs where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import BackendError, DeviceError, FeedError, ManifestError, ModelFileError, RunnerStateError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.runtime.backends.tensorrt import RtxRunner, TensorRTRunner
from densenet_deploy.runtime.cudart import Cuda
from densenet_deploy.runtime.nvidia import NvidiaOptions
from densenet_deploy.runtime.runner import Placement, RunnerOptions, open_runner
from densenet_deploy.runtime.sidecar import sidecar_path
from densenet_deploy.runtime.tensorrt.device_arrays import GpuArray
from tests.runtime.networks import images, write_network
from tests.runtime.simulated_tensorrt import FULL, RTX, simulated_gpu, write_simulated_engine
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import Behaviour

MANIFEST = Manifest("121", {}, WeightsOrigin("none", "0" * 64, 0), Preprocessing(image_size=8, resize=8))
TRUST = RunnerOptions(trust_engine=True)
NOTHING = {"memory": 0, "streams": 0, "events": 0, "graphs": 0}


@pytest.fixture(params=[RTX, FULL], ids=["rtx", "tensorrt"])
def flavour(request: pytest.FixtureRequest) -> Behaviour:
    return request.param


@pytest.fixture
def gpu(flavour: Behaviour) -> Iterator[SimulatedCuda]:
    with simulated_gpu(flavour) as cuda:
        yield cuda


@pytest.fixture
def means(tmp_path: Path) -> Path:
    return write_network(tmp_path)


@pytest.fixture
def engine(tmp_path: Path, means: Path, flavour: Behaviour) -> Path:
    return write_simulated_engine(tmp_path, means, flavour, manifest=MANIFEST)


@pytest.fixture
def full_gpu() -> Iterator[SimulatedCuda]:
    with simulated_gpu(FULL, SimulatedMachine(gpus=2)) as cuda:
        yield cuda


@pytest.fixture
def full_engine(tmp_path: Path, means: Path) -> Path:
    return write_simulated_engine(tmp_path, means, FULL, manifest=MANIFEST)


def check(runner: TensorRTRunner, count: int = 2) -> None:
    np.testing.assert_array_equal(runner(images(count))["logits"], images(count).mean((2, 3)))


def opened(path: Path, device: str | None = None, options: RunnerOptions | None = None) -> TensorRTRunner:
    runner = open_runner(path, device=device, options=options)
    assert isinstance(runner, TensorRTRunner)
    return runner


# Which engines, and what they need


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (TensorRTRunner, ("tensorrt", "tensorrt", "tensorrt", "tensorrt")),
        (RtxRunner, ("rtx", "rtx", "tensorrt_rtx", "tensorrt-rtx")),
    ],
)
def test_a_backend_is_a_flavour_and_what_it_needs(kind: type[TensorRTRunner], facts: tuple[str, ...]) -> None:
    assert (kind.name, kind.flavour, kind.requires, kind.extra) == facts
    assert (kind.suffixes, kind.devices) == ((".engine",), ("cuda",))


def test_the_header_decides_which_backend(flavour: Behaviour, engine: Path) -> None:
    is_rtx = flavour.flavour == "rtx"
    assert (RtxRunner.suits(Artifact.open(engine)), TensorRTRunner.suits(Artifact.open(engine))) == (is_rtx, not is_rtx)
    engine.write_bytes(b"nothing of the kind, but long enough for a header")
    assert not RtxRunner.suits(Artifact.open(engine))


def test_versions_and_devices_that_answer(flavour: Behaviour) -> None:
    kind = RtxRunner if flavour.flavour == "rtx" else TensorRTRunner
    version = ".".join(map(str, flavour.version))
    with simulated_gpu(flavour, SimulatedMachine(gpus=2)):
        assert kind.probe() == (version, ("cuda:0", "cuda:1"))
    with simulated_gpu(flavour, SimulatedMachine(has_driver=False)):
        assert kind.probe() == (version, ())


# What is refused (bad inputs 22 to 26, 59)


@pytest.mark.parametrize("options", [None, TRUST], ids=["", "trusted"])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d[:100], lambda d: d[:60] + b"\1" + d[61:]])
def test_a_changed_plan_is_refused_before_anything_runs(
    gpu: SimulatedCuda, engine: Path, change: Callable[[bytes], bytes], options: RunnerOptions | None
) -> None:
    engine.write_bytes(change(engine.read_bytes()))
    with pytest.raises(ModelFileError) as caught:
        open_runner(engine, options=options)
    assert caught.value.subject == str(engine)
    assert gpu.calls == []


def test_an_engine_without_a_sidecar_needs_trust(gpu: SimulatedCuda, engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(ModelFileError) as caught:
        open_runner(engine)
    assert caught.value.subject == str(engine)
    assert gpu.calls == []
    with opened(engine, options=TRUST) as runner:
        assert (runner.placement.precision, runner.manifest) == ("unknown", None)
        check(runner)


def test_a_broken_sidecar_is_not_trusted(gpu: SimulatedCuda, engine: Path) -> None:
    sidecar_path(engine).write_text("{")
    with pytest.raises(ManifestError):
        open_runner(engine, options=TRUST)
    assert gpu.calls == []


def test_another_version_is_refused_before_the_gpu_is_asked(gpu: SimulatedCuda, flavour, tmp_path, means) -> None:
    path = write_simulated_engine(tmp_path, means, dataclasses.replace(flavour, version=(9, 1, 0, 5)))
    with pytest.raises(BackendError) as caught:
        open_runner(path)
    assert caught.value.subject == str(path)
    assert gpu.calls == []


def test_another_flavour_is_refused(full_gpu: SimulatedCuda, tmp_path: Path, means: Path) -> None:
    path = write_simulated_engine(tmp_path, means, RTX)
    with pytest.raises(BackendError) as caught:
        open_runner(path, "tensorrt")
    assert caught.value.subject == str(path)


def test_another_compute_capability_is_a_device_error(flavour: Behaviour, engine: Path) -> None:
    with simulated_gpu(flavour, SimulatedMachine(compute_capability=(9, 0))), pytest.raises(DeviceError) as caught:
        open_runner(engine)
    assert caught.value.subject == str(engine)


def test_no_driver_is_a_device_error(flavour: Behaviour, engine: Path) -> None:
    with simulated_gpu(flavour, SimulatedMachine(has_driver=False)), pytest.raises(DeviceError) as caught:
        open_runner(engine)
    assert caught.value.subject == "cuda"


def test_a_trusted_plan_that_tensorrt_refuses_is_a_backend_error(full_gpu, full_engine: Path) -> None:
    """Without a sidecar a header alone decides, and full TensorRT does not always store the size in it."""
    full_engine.write_bytes(full_engine.read_bytes() + b"more")
    sidecar_path(full_engine).unlink()
    with pytest.raises(BackendError) as caught:
        open_runner(full_engine, options=TRUST)
    assert caught.value.subject == str(full_engine)


@pytest.mark.parametrize("device", ["cpu", "cuda:2"])
def test_a_device_that_is_not_there_is_never_replaced(full_gpu: SimulatedCuda, full_engine: Path, device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        open_runner(full_engine, device=device)
    assert caught.value.subject == device


def test_a_precision_that_the_engine_does_not_hold_is_refused(full_gpu: SimulatedCuda, full_engine: Path) -> None:
    with opened(full_engine, options=RunnerOptions(precision="fp32")) as runner:
        assert runner.placement.precision == "fp32"
    with pytest.raises(BackendError) as caught:
        open_runner(full_engine, options=RunnerOptions(precision="fp16"))
    assert caught.value.subject == "fp16"


# What runs


@pytest.mark.parametrize(
    ("behaviour", "placement"),
    [
        (
            RTX,
            Placement(
                backend="rtx",
                version="1.7.1.116",
                device="cuda:0",
                provider="TensorRT-RTX on Simulated GPU (8.9)",
                precision="fp32",
                threads=1,
                notes=("CUDA graphs left to TensorRT-RTX",),
            ),
        ),
        (
            FULL,
            Placement(
                backend="tensorrt",
                version="10.3.0.26",
                device="cuda:0",
                provider="TensorRT on Simulated GPU (8.9)",
                precision="fp32",
                threads=1,
                notes=("CUDA graphs",),
            ),
        ),
    ],
    ids=["rtx", "tensorrt"],
)
def test_the_placement_says_what_runs(behaviour: Behaviour, placement: Placement, tmp_path: Path, means: Path) -> None:
    path = write_simulated_engine(tmp_path, means, behaviour, manifest=MANIFEST)
    with simulated_gpu(behaviour), opened(path) as runner:
        assert runner.placement == placement
        assert runner.manifest == MANIFEST
        for count in (1, 2, 9):
            check(runner, count)


@pytest.mark.parametrize(
    ("convolutions", "precision", "notes"),
    [
        ({"a": "fp16", "b": "int8", "c": "int8", "d": "unknown"}, "int8", ("convolutions: 2 int8, 1 fp16",)),
        ({"a": "unknown"}, "fp32", ()),
        ({}, "fp32", ()),
    ],
)
def test_the_placement_says_what_convolutions_run_in(
    full_gpu: SimulatedCuda, tmp_path: Path, means: Path, convolutions, precision, notes
) -> None:
    with opened(write_simulated_engine(tmp_path, means, FULL, convolutions=convolutions)) as runner:
        assert runner.placement.precision == precision
        assert runner.placement.notes == (*notes, "CUDA graphs")


def test_the_named_gpu_runs_it_whatever_the_thread_uses(full_gpu: SimulatedCuda, full_engine: Path) -> None:
    with opened(full_engine, "cuda:1") as runner:
        assert runner.placement.device == "cuda:1"
        check(runner)
    with opened(full_engine) as runner:
        assert runner.placement.device == "cuda:0"


@pytest.mark.parametrize("check_values", [True, False])
def test_values_are_checked_unless_that_is_switched_off(
    full_gpu: SimulatedCuda, full_engine: Path, check_values: bool
) -> None:
    feed = images(1) + 1e6
    with opened(full_engine, options=RunnerOptions(check_values=check_values)) as runner:
        if not check_values:
            assert runner(feed)["logits"].min() > 1e5
            return
        with pytest.raises(FeedError) as caught:
            runner(feed)
    assert caught.value.subject == "input"


def test_a_batch_on_the_gpu_runs_there_and_outlives_the_runner(full_gpu: SimulatedCuda, full_engine: Path) -> None:
    cuda, values = Cuda(full_gpu), images(2)
    feed, out = (GpuArray(cuda, 0, shape, np.dtype(np.float32)) for shape in ((2, 3, 8, 8), (2, 3)))
    address, kind = feed.__cuda_array_interface__["data"][0], cuda.enum("cudaMemcpyKind", 1)
    cuda("cudaMemcpyAsync", address, values.ctypes.data, values.nbytes, kind, 1)
    cuda("cudaStreamSynchronize", 1)
    runner = opened(full_engine)
    new = runner.run_on_gpu({"input": feed})["logits"]
    assert runner.run_on_gpu({"input": feed}, {"logits": out})["logits"] is out
    runner.close()
    for result in (new, out):
        np.testing.assert_array_equal(result.to_host(), values.mean((2, 3)))
    with pytest.raises(RunnerStateError):
        runner.run_on_gpu({"input": feed})


def test_closing_saves_new_kernels_and_gives_everything_back(tmp_path: Path, means: Path) -> None:
    path = write_simulated_engine(tmp_path, means, RTX)
    options = RunnerOptions(nvidia=NvidiaOptions(cache=tmp_path / "cache"))
    with simulated_gpu(RTX) as cuda:
        runner = opened(path, options=options)
        (kernels,) = (tmp_path / "cache").iterdir()
        before = kernels.read_bytes()
        runner(images(5))
        assert kernels.read_bytes() == before
        runner.close()
        assert kernels.read_bytes() == before + b", batch 5"
        runner.close()
        assert cuda.in_use() == NOTHING
        compiled = cuda.calls.count("compile")
        opened(path, options=options).close()
        assert cuda.calls.count("compile") == compiled


@pytest.mark.gpu
def test_pytorch_arrays_run_in_place_on_a_real_gpu(real_engine: Path, tiny_onnx: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU")
    feed = np.random.default_rng(3).standard_normal((2, 3, 32, 32), np.float32)
    with open_runner(tiny_onnx, "onnxruntime", "cpu") as reference:
        expected = reference.run({"input": feed})["logits"]
    with opened(real_engine) as runner:
        logits = runner.run_on_gpu({"input": torch.from_numpy(feed).cuda()})["logits"]
        # float32 convolutions by other algorithms than the CPU's
        np.testing.assert_allclose(logits.to_host(), expected, atol=1e-3)
        np.testing.assert_allclose(torch.as_tensor(logits, device="cuda").cpu().numpy(), logits.to_host())

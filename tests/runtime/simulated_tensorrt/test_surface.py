"""The simulation invents nothing: what it offers, the real libraries offer under the same names and numbers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.errors import DeviceError, ModelFileError
from densenet_deploy.runtime.nvidia import find_gpus
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.runtime.trt import load_tensorrt
from tests.runtime.conftest import float32_plan
from tests.runtime.networks import write_network
from tests.runtime.plans import sidecar_of, write_engine
from tests.runtime.simulated_tensorrt import cuda as simulated
from tests.runtime.simulated_tensorrt import tensorrt as simulated_trt
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda


@pytest.fixture(scope="module")
def tensorrt() -> Any:
    """The real module, which only these tests load."""
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


OURS = {"session", "nodes", "profiles", "device", "contexts", "is_dynamic", "runtime", "cuda", "behaviour", "module"}
OURS |= {"fail", "kernels", "cache"}


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")} - OURS


@pytest.mark.parametrize(
    ("simulation", "real"),
    [
        ("_Runtime", "Runtime"),
        ("_Engine", "ICudaEngine"),
        ("_Context", "IExecutionContext"),
        ("_RuntimeConfig", "IRuntimeConfig"),
        ("_RuntimeCache", "IRuntimeCache"),
    ],
)
def test_methods_exist_on_the_real_classes(tensorrt: Any, simulation: str, real: str) -> None:
    names = public(getattr(simulated_trt, simulation))
    missing = {name for name in names if not hasattr(getattr(tensorrt, real), name)}
    assert not missing


@pytest.mark.parametrize("name", ["TensorIOMode", "DataType", "CudaGraphStrategy"])
def test_enumerations_have_the_real_numbers(tensorrt: Any, name: str) -> None:
    real = getattr(tensorrt, name).__members__
    assert {member.name: int(real[member.name]) for member in getattr(simulated_trt, name)} == {
        member.name: member.value for member in getattr(simulated_trt, name)
    }


def test_what_is_looked_up_by_name_is_there(tensorrt: Any) -> None:
    for name in ("create_runtime_config",):
        assert hasattr(tensorrt.ICudaEngine, name)
    for name in ("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"):
        assert hasattr(tensorrt.IRuntimeConfig, name)
    assert hasattr(tensorrt.IExecutionContext, "is_stream_capturable")


@pytest.fixture(scope="module")
def bindings() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


def test_cuda_functions_exist_with_as_many_arguments(bindings: Any) -> None:
    for name, function in inspect.getmembers(SimulatedCuda, inspect.isfunction):
        if not name.startswith("cuda"):
            continue
        real = getattr(bindings, name).__doc__.partition("\n")[0]  # "cudaFree(devPtr)"
        arguments = [word for word in real.partition("(")[2].rpartition(")")[0].split(",") if word.strip()]
        assert len(inspect.signature(function).parameters) - 1 == len(arguments), real


@pytest.mark.parametrize("name", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"])
def test_cuda_enumerations_have_the_real_numbers(bindings: Any, name: str) -> None:
    for member in getattr(simulated, name):
        assert int(getattr(getattr(bindings, name), member.name)) == member.value


def test_the_product_reads_what_the_real_module_has(tensorrt: Any) -> None:
    load_tensorrt.cache_clear()
    features = load_tensorrt("rtx").features
    assert features.strong_typing
    assert not features.weak_typing
    assert features.compute_capabilities
    assert features.runtime_cache
    assert features.preflight


def test_the_real_builder_logs_through_the_one_logger(tensorrt: Any) -> None:
    trt = load_tensorrt("rtx")
    assert load_tensorrt("rtx") is trt
    builder = trt.module.Builder(trt.log.native)
    network, config = builder.create_network(0), builder.create_builder_config()
    network.add_input("input", trt.module.float32, (-1, 3, 8, 8))
    trt.log.take_errors()
    assert builder.build_serialized_network(network, config) is None
    assert trt.log.take_errors()


def test_a_real_plan_without_a_gpu_is_a_device_error(tensorrt: Any, tmp_path: Path) -> None:
    if find_gpus():
        pytest.skip("this machine has a GPU")
    plan = float32_plan(load_tensorrt("rtx"), write_network(tmp_path).read_bytes())
    path = tmp_path / "means.engine"
    write_engine(path, plan, sidecar_of(plan, precision="fp32"))
    with pytest.raises(DeviceError) as caught:
        open_runner(path)
    assert caught.value.subject == "cuda"
    path.write_bytes(plan[:-1])
    with pytest.raises(ModelFileError) as caught:
        open_runner(path)
    assert caught.value.subject == str(path)

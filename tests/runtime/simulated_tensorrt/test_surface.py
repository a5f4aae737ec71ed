"""The simulation invents nothing: what it offers, the real libraries offer under the same names and numbers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from densenet_deploy.runtime import cudart
from tests.runtime.simulated_tensorrt import cuda as simulated
from tests.runtime.simulated_tensorrt import tensorrt as simulated_trt
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda

tensorrt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

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
def test_methods_exist_on_the_real_classes(simulation: str, real: str) -> None:
    names = public(getattr(simulated_trt, simulation))
    missing = {name for name in names if not hasattr(getattr(tensorrt, real), name)}
    assert not missing


@pytest.mark.parametrize("name", ["TensorIOMode", "DataType", "CudaGraphStrategy"])
def test_enumerations_have_the_real_numbers(name: str) -> None:
    real = getattr(tensorrt, name).__members__
    assert {member.name: int(real[member.name]) for member in getattr(simulated_trt, name)} == {
        member.name: member.value for member in getattr(simulated_trt, name)
    }


def test_what_is_looked_up_by_name_is_there() -> None:
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


def test_the_numbers_in_the_product_are_those_of_cuda(bindings: Any) -> None:
    errors = bindings.cudaError_t
    assert int(errors.cudaErrorMemoryAllocation) == cudart._OUT_OF_MEMORY
    missing = {"cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInvalidDevice", "cudaErrorStubLibrary"}
    assert {int(getattr(errors, name)) for name in missing} <= cudart._NO_DEVICE
    fatal = {"cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorECCUncorrectable", "cudaErrorAssert"}
    assert {int(getattr(errors, name)) for name in fatal} <= cudart._FATAL
    attributes = bindings.cudaDeviceAttr
    assert int(attributes.cudaDevAttrIntegrated) == cudart._INTEGRATED
    assert int(attributes.cudaDevAttrCanMapHostMemory) == cudart._CAN_MAP
    assert (int(bindings.cudaHostAllocMapped), int(bindings.cudaStreamNonBlocking)) == (cudart._MAPPED, 1)
    assert int(bindings.cudaEventDisableTiming) == cudart._NO_TIMING
    kinds = bindings.cudaMemoryType
    assert (int(kinds.cudaMemoryTypeDevice), int(kinds.cudaMemoryTypeManaged)) == cudart._ON_GPU

"""The simulation refuses what the real libraries refuse: otherwise what passes on it would prove nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, Stream
from densenet_deploy.runtime.trt import load_tensorrt
from tests.runtime.simulated_tensorrt import FULL, simulated_gpu
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine
from tests.runtime.simulated_tensorrt.tensorrt import UndefinedBehaviorError, simulated_plan

SHAPE = (2, 3, 32, 32)
PROFILES = ((1, 2, 8), (4, 4, 16))


@pytest.fixture
def simulation() -> Iterator[SimulatedCuda]:
    with simulated_gpu(FULL) as cuda:
        yield cuda


@pytest.fixture
def bench(simulation: SimulatedCuda, tiny_onnx: Path) -> Any:
    """A context with buffers of the right size and a stream, nothing set."""
    cuda, trt = Cuda(simulation), load_tensorrt("tensorrt")
    plan = simulated_plan(tiny_onnx.read_bytes(), PROFILES, magic=b"ftrt", version=FULL.version)
    engine = trt.module.Runtime(trt.log.native).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    memory = {"input": DeviceMemory(cuda, 2 * 3 * 32 * 32 * 4), "logits": DeviceMemory(cuda, 2 * 10 * 4)}
    return SimpleNamespace(
        cuda=cuda, trt=trt, engine=engine, context=context, memory=memory, stream=Stream(cuda), simulation=simulation
    )


def set_up(bench: Any) -> None:
    assert bench.context.set_input_shape("input", SHAPE)
    for name, memory in bench.memory.items():
        assert bench.context.set_tensor_address(name, memory.address)


def test_it_runs_when_everything_is_set_and_waited_for(bench: Any) -> None:
    set_up(bench)
    pinned = PinnedMemory(bench.cuda, bench.memory["input"].size)
    pinned.bytes[:] = 0
    bench.stream.copy_in(bench.memory["input"], pinned, pinned.size)
    assert bench.context.execute_async_v3(int(bench.stream))
    logits = np.zeros((2, 10), np.float32)
    bench.stream.copy_to_host(logits, bench.memory["logits"].address)
    assert np.isfinite(logits).all()
    assert bench.context.get_tensor_shape("logits") == (2, 10)


def test_new_memory_holds_nan(bench: Any) -> None:
    back = np.zeros(20, np.float32)
    bench.stream.copy_to_host(back, bench.memory["logits"].address)
    assert np.isnan(back).all()


def test_a_missing_address_is_refused(bench: Any) -> None:
    bench.context.set_input_shape("input", SHAPE)
    bench.context.set_tensor_address("input", bench.memory["input"].address)
    assert not bench.context.execute_async_v3(int(bench.stream))
    assert "no address for logits" in bench.trt.log.last_error()


def test_a_missing_shape_is_refused(bench: Any) -> None:
    assert bench.context.infer_shapes() == ["input"]
    for name, memory in bench.memory.items():
        bench.context.set_tensor_address(name, memory.address)
    assert not bench.context.execute_async_v3(int(bench.stream))


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (0, 3, 32, 32), (2, 3, 31, 32), (2, 3, 32)])
def test_a_shape_outside_the_profile_is_refused(bench: Any, shape: tuple[int, ...]) -> None:
    assert not bench.context.set_input_shape("input", shape)
    assert "outside the profile" in bench.trt.log.last_error()


def test_a_profile_that_is_not_there_is_refused(bench: Any) -> None:
    with pytest.raises(RuntimeError, match="out of range"):
        bench.context.set_optimization_profile_async(2, int(bench.stream))
    with pytest.raises(UndefinedBehaviorError, match="no profile 2"):
        bench.engine.get_tensor_profile_shape("input", 2)
    with pytest.raises(UndefinedBehaviorError, match="not an input"):
        bench.engine.get_tensor_profile_shape("logits", 0)


def test_another_profile_forgets_shapes(bench: Any) -> None:
    set_up(bench)
    assert bench.context.set_optimization_profile_async(1, int(bench.stream))
    assert not bench.context.set_input_shape("input", SHAPE)
    assert not bench.context.execute_async_v3(int(bench.stream))


def test_an_unknown_name_is_undefined(bench: Any) -> None:
    for call in (
        lambda: bench.context.set_input_shape("image", SHAPE),
        lambda: bench.context.set_tensor_address("image", 256),
        lambda: bench.engine.get_tensor_dtype("image"),
    ):
        with pytest.raises(UndefinedBehaviorError, match="no tensor 'image'"):
            call()


def test_an_odd_address_is_refused(bench: Any) -> None:
    assert not bench.context.set_tensor_address("input", bench.memory["input"].address + 4)


def test_freed_or_short_memory_is_undefined(bench: Any) -> None:
    set_up(bench)
    del bench.memory["logits"]
    with pytest.raises(UndefinedBehaviorError, match="memory of logits"):
        bench.context.execute_async_v3(int(bench.stream))
    bench.context.set_tensor_address("logits", DeviceMemory(bench.cuda, 4).address)
    with pytest.raises(UndefinedBehaviorError, match="memory of logits"):
        bench.context.execute_async_v3(int(bench.stream))


def test_two_threads_in_one_context_are_undefined(bench: Any) -> None:
    set_up(bench)
    caught: list[BaseException] = []

    def intrude() -> None:
        try:
            bench.context.execute_async_v3(int(bench.stream))
        except UndefinedBehaviorError as exc:
            caught.append(exc)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert "another thread had begun" in str(caught[0])


def test_a_graph_of_another_state_is_undefined(bench: Any) -> None:
    set_up(bench)
    bench.context.execute_async_v3(int(bench.stream))
    bench.stream.synchronize()
    graph = bench.stream.capture(lambda: bench.context.execute_async_v3(int(bench.stream)))
    graph.launch(bench.stream)
    bench.stream.synchronize()
    bench.context.set_input_shape("input", (1, 3, 32, 32))
    graph.launch(bench.stream)
    with pytest.raises(UndefinedBehaviorError, match="was changed since"):
        bench.stream.synchronize()


def test_the_device_of_a_thread_matters(tiny_onnx: Path) -> None:
    with simulated_gpu(FULL, SimulatedMachine(gpus=2)) as simulation:
        trt = load_tensorrt("tensorrt")
        plan = simulated_plan(tiny_onnx.read_bytes(), PROFILES, magic=b"ftrt", version=FULL.version)
        engine = trt.module.Runtime(trt.log.native).deserialize_cuda_engine(plan)
        Cuda(simulation).use(1)
        with pytest.raises(UndefinedBehaviorError, match="device is not the engine's"):
            engine.create_execution_context()


def test_a_logger_whose_constructor_did_not_run_is_undefined(simulation: SimulatedCuda) -> None:
    module = load_tensorrt("tensorrt").module
    with pytest.raises(UndefinedBehaviorError, match="constructor"):
        module.Runtime(module.ILogger.__new__(module.ILogger))


def test_cuda_bindings_take_members_of_their_enumerations(simulation: SimulatedCuda) -> None:
    with pytest.raises(TypeError, match="cudaMemcpyKind"):
        simulation.cudaMemcpyAsync(0, 0, 0, 1, 16)
    with pytest.raises(TypeError, match="cudaStreamCaptureMode"):
        simulation.cudaStreamBeginCapture(16, 1)

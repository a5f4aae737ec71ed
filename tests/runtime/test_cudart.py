"""The CUDA runtime over cuda-bindings: failures are typed, and everything that is allocated is freed."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError, ResourceError
from densenet_deploy.runtime import cudart
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, PinnedMemory, Stream, load_cuda
from tests.runtime.simulated_tensorrt import simulated_gpu
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda, SimulatedMachine, cudaError_t


@pytest.fixture
def machine() -> SimulatedMachine:
    return SimulatedMachine(gpus=2, memory_bytes=1 << 20)


@pytest.fixture
def simulation(machine: SimulatedMachine) -> SimulatedCuda:
    return SimulatedCuda(machine)


@pytest.fixture
def cuda(simulation: SimulatedCuda) -> Cuda:
    return Cuda(simulation)


def round_trip(cuda: Cuda, values: np.ndarray) -> np.ndarray:
    memory, pinned, stream = DeviceMemory(cuda, values.nbytes), PinnedMemory(cuda, values.nbytes), Stream(cuda)
    pinned.bytes[:] = values.view(np.uint8)
    stream.copy_in(memory, pinned, values.nbytes)
    back = np.zeros_like(values)
    stream.copy_to_host(back, memory.address)
    return back


def test_a_gpu_is_described(cuda: Cuda) -> None:
    gpu = cuda.gpu(1)
    assert (gpu.index, gpu.name, gpu.compute_capability) == (1, "Simulated GPU", "8.9")
    assert not cuda.shares_memory(1)
    assert cuda.driver_version() == 13000
    with pytest.raises(DeviceError) as caught:
        cuda.gpu(2)
    assert caught.value.subject == "cuda:2"


def test_bytes_go_there_and_back(cuda: Cuda) -> None:
    values = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(round_trip(cuda, values), values)


def test_nothing_happens_before_it_is_waited_for(cuda: Cuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 4), PinnedMemory(cuda, 4), Stream(cuda)
    pinned.bytes[:] = 7
    stream.copy_in(memory, pinned, 4)
    stream.copy_out(pinned, memory, 4)
    pinned.bytes[:] = 1
    stream.synchronize()
    assert set(pinned.bytes) == {1}, "the copy took what was there when it ran"


def test_what_nothing_refers_to_is_given_back(cuda: Cuda, simulation: SimulatedCuda) -> None:
    round_trip(cuda, np.zeros(8, np.float32))
    stream = Stream(cuda)
    assert simulation.in_use() == {"memory": 0, "streams": 1, "events": 0, "graphs": 0}
    stream.release()
    stream.release()
    assert simulation.in_use()["streams"] == 0
    assert simulation.calls.count("cudaStreamDestroy") == 2


def test_memory_that_runs_out_is_a_resource_error(cuda: Cuda, simulation: SimulatedCuda) -> None:
    kept = DeviceMemory(cuda, 1 << 19)
    with pytest.raises(ResourceError, match="cudaErrorMemoryAllocation") as caught:
        DeviceMemory(cuda, (1 << 19) + 1)
    assert caught.value.exit_code == 6
    assert DeviceMemory(cuda, 1 << 19).size == kept.size, "and the next call works"


def test_other_failures_name_the_call_and_the_error(cuda: Cuda, simulation: SimulatedCuda) -> None:
    simulation.fail_next["cudaMalloc"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(BackendError) as caught:
        DeviceMemory(cuda, 8)
    assert caught.value.subject == "CUDA"
    assert "cudaErrorInvalidValue" in caught.value.why
    DeviceMemory(cuda, 8)


def test_after_a_fatal_error_every_call_says_so(cuda: Cuda, simulation: SimulatedCuda) -> None:
    stream = Stream(cuda)
    simulation.fail_next["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
        stream.synchronize()
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
        DeviceMemory(cuda, 8)


def test_use_after_free_is_fatal(cuda: Cuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 8), PinnedMemory(cuda, 8), Stream(cuda)
    stream.copy_in(memory, pinned, 8)
    memory.release()
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
        stream.synchronize()


def test_a_copy_past_the_end_is_refused(cuda: Cuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 8), PinnedMemory(cuda, 16), Stream(cuda)
    with pytest.raises(BackendError) as caught:
        stream.copy_in(memory, pinned, 16)
    assert caught.value.subject == "CUDA"
    assert "cudaErrorInvalidValue" in caught.value.why


def test_a_stream_waits_for_another(cuda: Cuda) -> None:
    memory, pinned = DeviceMemory(cuda, 4), PinnedMemory(cuda, 4)
    first, second = Stream(cuda), Stream(cuda)
    pinned.bytes[:] = 9
    first.copy_in(memory, pinned, 4)
    second.wait_for(int(first))
    back = np.zeros(4, np.uint8)
    second.copy_to_host(back, memory.address)
    assert set(back) == {9}


def test_a_graph_repeats_what_was_recorded(cuda: Cuda, simulation: SimulatedCuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 4), PinnedMemory(cuda, 4), Stream(cuda)
    graph = stream.capture(lambda: stream.copy_in(memory, pinned, 4))
    for value in (3, 4):
        pinned.bytes[:] = value
        graph.launch(stream)
        back = np.zeros(4, np.uint8)
        stream.copy_to_host(back, memory.address)
        assert set(back) == {value}
    assert simulation.in_use()["graphs"] == 1, "the recording itself is gone"


def test_what_cannot_be_recorded_leaves_the_stream_usable(cuda: Cuda, simulation: SimulatedCuda) -> None:
    stream = Stream(cuda)
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        stream.capture(lambda: DeviceMemory(cuda, 4))
    assert simulation.calls[-1] == "cudaGetLastError", "the error is taken away"
    with pytest.raises(ZeroDivisionError):
        stream.capture(lambda: 1 / 0)
    simulation.fail_next["cudaStreamEndCapture"] = cudaError_t.cudaErrorStreamCaptureInvalidated
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureInvalidated"):
        stream.capture(lambda: None)
    assert simulation.in_use()["graphs"] == 0


def test_mapped_memory_is_one_for_both(cuda: Cuda) -> None:
    pinned = PinnedMemory(cuda, 4, mapped=True)
    pinned.bytes[:] = 5
    assert pinned.device_address is not None
    back = np.zeros(4, np.uint8)
    Stream(cuda).copy_to_host(back, pinned.device_address)
    assert set(back) == {5}
    assert PinnedMemory(cuda, 4).device_address is None


def test_memory_knows_its_device(cuda: Cuda) -> None:
    cuda.use(1)
    memory, pinned = DeviceMemory(cuda, 64), PinnedMemory(cuda, 64)
    assert cuda.device_of(memory.address + 32) == 1
    assert cuda.device_of(pinned.address) is None
    assert cuda.device_of(id(cuda)) is None


def test_the_device_belongs_to_the_thread(cuda: Cuda, simulation: SimulatedCuda) -> None:
    cuda.use(1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(simulation.current_device))
    thread.start()
    thread.join()
    assert (simulation.current_device, seen) == (1, [0])


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (SimulatedMachine(has_driver=False), "cudaErrorInsufficientDriver"),
        (SimulatedMachine(gpus=0), "GPU"),
    ],
)
def test_no_driver_and_no_gpu_are_device_errors(machine: SimulatedMachine, reason: str) -> None:
    with simulated_gpu(machine=machine), pytest.raises(DeviceError) as caught:
        load_cuda()
    assert reason in caught.value.why
    assert caught.value.exit_code == 5


def test_without_cuda_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackageError) as caught:
        load_cuda("tensorrt")
    assert caught.value.subject == "cuda-bindings"
    assert "tensorrt" in caught.value.fix


def test_a_forked_child_frees_nothing(cuda: Cuda, simulation: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = DeviceMemory(cuda, 4)
    monkeypatch.setattr(cudart.os, "getpid", lambda: -1)
    del memory
    gc.collect()
    assert simulation.in_use()["memory"] == 1


@pytest.mark.gpu
def test_a_real_gpu_copies_and_records() -> None:
    try:
        cuda = load_cuda()
    except (DeviceError, MissingPackageError) as exc:
        pytest.skip(str(exc))
    cuda.use(0)
    values = np.random.default_rng(0).standard_normal(100_000, np.float32)
    np.testing.assert_array_equal(round_trip(cuda, values), values)
    memory, pinned, stream = DeviceMemory(cuda, 4), PinnedMemory(cuda, 4), Stream(cuda)
    graph = stream.capture(lambda: stream.copy_in(memory, pinned, 4))
    pinned.bytes[:] = 6
    graph.launch(stream)
    back = np.zeros(4, np.uint8)
    stream.copy_to_host(back, memory.address)
    assert set(back) == {6}
    with pytest.raises(ResourceError):
        DeviceMemory(cuda, 1 << 50)

"""The CUDA runtime over cuda-bindings: failures are typed, and everything that is allocated is freed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from densenet_deploy.errors import BackendError, DeviceError, MissingPackageError, ResourceError
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


class Answers:
    """An API that gives the same answer to every call."""

    def __init__(self, *answer: Any) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: self._answer


@pytest.mark.parametrize(("answer", "value"), [((0,), None), ((0, 7), 7), ((0, 7, 8), (7, 8))])
def test_a_call_gives_its_value_its_values_or_none(answer: tuple[int, ...], value: object) -> None:
    assert Cuda(Answers(*answer))("cudaAnything") == value


def test_a_gpu_is_described(cuda: Cuda) -> None:
    gpu = cuda.gpu(1)
    assert (gpu.index, gpu.name, gpu.compute_capability) == (1, "Simulated GPU", "8.9")
    assert cuda.device_count() == 2
    assert cuda.driver_version() == 13000
    with pytest.raises(DeviceError) as caught:
        cuda.gpu(2)
    assert caught.value.subject == "cuda:2"


def test_a_name_that_is_not_utf_8_is_read_up_to_its_end(cuda: Cuda, simulation: SimulatedCuda) -> None:
    simulation.cudaGetDeviceProperties = lambda _: (0, SimpleNamespace(name=b"G\xb0\0rest"))
    assert cuda.gpu(0).name == "G\ufffd"


@pytest.mark.parametrize(
    ("integrated", "can_map", "shares"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_memory_is_shared_by_an_integrated_gpu_that_maps_it(integrated: bool, can_map: bool, shares: bool) -> None:
    simulation = SimulatedCuda(SimulatedMachine(integrated=integrated, can_map=can_map))
    assert Cuda(simulation).shares_memory(0) is shares


def test_bytes_go_there_and_back(cuda: Cuda) -> None:
    values = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(round_trip(cuda, values), values)


def test_copies_are_done_when_they_are_waited_for_and_as_long_as_was_asked(cuda: Cuda) -> None:
    memory, source, target, stream = DeviceMemory(cuda, 4), PinnedMemory(cuda, 4), PinnedMemory(cuda, 4), Stream(cuda)
    source.bytes[:] = 7
    target.bytes[:] = 1
    stream.copy_in(memory, source, 3)
    stream.copy_out(target, memory, 2)
    assert list(target.bytes) == [1, 1, 1, 1]
    stream.synchronize()
    assert list(target.bytes) == [7, 7, 1, 1]
    stream.copy_out(target, memory, 4)
    stream.synchronize()
    assert list(target.bytes) == [7, 7, 7, 255], "new memory holds what it holds"


def test_what_nothing_refers_to_is_given_back(cuda: Cuda, simulation: SimulatedCuda) -> None:
    round_trip(cuda, np.zeros(8, np.float32))
    stream, other = Stream(cuda), Stream(cuda)
    stream.wait_for(int(other))
    graph = stream.capture(lambda: None)
    assert simulation.in_use() == {"memory": 0, "streams": 2, "events": 0, "graphs": 1}
    del graph, stream, other
    assert simulation.in_use() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0}


def test_failing_to_free_disturbs_nobody(cuda: Cuda, simulation: SimulatedCuda) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the driver is gone")

    simulation.cudaFree = fail
    cuda.free("cudaFree", 1)


def test_a_forked_child_frees_nothing(cuda: Cuda, simulation: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = DeviceMemory(cuda, 4)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    del memory
    assert simulation.in_use()["memory"] == 1


def test_memory_that_runs_out_is_a_resource_error(cuda: Cuda) -> None:
    kept = DeviceMemory(cuda, 1 << 19)
    with pytest.raises(ResourceError) as caught:
        DeviceMemory(cuda, (1 << 19) + 1)
    assert caught.value.subject == "GPU memory"
    assert "cudaErrorMemoryAllocation (2)" in caught.value.why
    assert DeviceMemory(cuda, 1 << 19).size == kept.size == 1 << 19, "and the next call works"


@pytest.mark.parametrize("code", [3, 34, 35, 36, 46, 100, 101, 802, 803, 804])
def test_a_gpu_or_driver_that_is_missing_too_old_or_taken_is_a_device_error(code: int) -> None:
    """Initialization, stub, old driver, driver call, busy, none, invalid, not ready, mismatch, compatibility."""
    with pytest.raises(DeviceError) as caught:
        DeviceMemory(failing_once_with(code), 8)
    assert caught.value.subject == "cuda"


@pytest.mark.parametrize("code", [214, 700, 702, 710, 714, 715, 716, 717, 718, 719])
def test_after_an_error_that_destroys_the_context_every_call_raises_it_again(code: int) -> None:
    """ECC, illegal address, timeout, assert, stack, instruction, misaligned, address space, program counter, launch."""
    cuda = failing_once_with(code)
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            DeviceMemory(cuda, 8)
        assert caught.value.subject == "CUDA"
        assert f"({code})" in caught.value.why


@pytest.mark.parametrize(("code", "name"), [(1, "cudaErrorInvalidValue"), (999, "an unknown error")])
def test_other_failures_name_the_call_and_the_error_and_concern_that_call_alone(code: int, name: str) -> None:
    cuda = failing_once_with(code)
    with pytest.raises(BackendError) as caught:
        DeviceMemory(cuda, 8)
    assert caught.value.subject == "CUDA"
    assert f"cudaMalloc failed with {name} ({code})" in caught.value.why
    DeviceMemory(cuda, 8)


def failing_once_with(code: int) -> Cuda:
    simulation = SimulatedCuda()
    simulation.fail_next["cudaMalloc"] = code
    return Cuda(simulation)


def test_use_after_free_is_fatal(cuda: Cuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 8), PinnedMemory(cuda, 8), Stream(cuda)
    stream.copy_in(memory, pinned, 8)
    del memory
    with pytest.raises(BackendError) as caught:
        stream.synchronize()
    assert "cudaErrorIllegalAddress" in caught.value.why


def test_a_copy_past_the_end_is_refused(cuda: Cuda) -> None:
    memory, pinned, stream = DeviceMemory(cuda, 8), PinnedMemory(cuda, 16), Stream(cuda)
    with pytest.raises(BackendError) as caught:
        stream.copy_in(memory, pinned, 16)
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
    back = np.zeros(4, np.uint8)
    stream.copy_to_host(back, memory.address)
    assert set(back) == {255}, "recorded, and not run"
    for value in (3, 4):
        pinned.bytes[:] = value
        graph.launch(stream)
        stream.copy_to_host(back, memory.address)
        assert set(back) == {value}
    assert simulation.in_use()["graphs"] == 1, "the recording itself is gone"


def test_another_thread_may_allocate_during_a_recording(cuda: Cuda) -> None:
    stream, kept = Stream(cuda), []
    with ThreadPoolExecutor(1) as pool:
        assert stream.capture(lambda: kept.append(pool.submit(DeviceMemory, cuda, 4).result()))


def test_what_cannot_be_recorded_leaves_the_stream_usable(cuda: Cuda, simulation: SimulatedCuda) -> None:
    stream = Stream(cuda)
    with pytest.raises(BackendError) as caught:
        stream.capture(lambda: DeviceMemory(cuda, 4))
    assert "cudaErrorStreamCaptureUnsupported" in caught.value.why
    assert simulation.calls[-1] == "cudaGetLastError", "the error is cleared"
    with pytest.raises(ZeroDivisionError):
        stream.capture(lambda: 1 / 0)
    simulation.fail_next["cudaStreamEndCapture"] = cudaError_t.cudaErrorStreamCaptureInvalidated
    with pytest.raises(BackendError) as caught:
        stream.capture(lambda: None)
    assert "cudaErrorStreamCaptureInvalidated" in caught.value.why
    assert simulation.in_use()["graphs"] == 0
    assert stream.capture(lambda: None)


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


@pytest.mark.parametrize(("kind", "device"), [(0, None), (1, None), (2, 5), (3, 5)])
def test_device_and_managed_memory_are_on_a_gpu(kind: int, device: int | None) -> None:
    """Kinds of memory: unregistered, host, device, managed."""
    assert Cuda(Answers(0, SimpleNamespace(type=kind, device=5))).device_of(256) == device


def test_the_device_belongs_to_the_thread(cuda: Cuda, simulation: SimulatedCuda) -> None:
    cuda.use(1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: simulation.current_device).result() == 0
    assert simulation.current_device == 1


def test_one_gpu_is_enough() -> None:
    with simulated_gpu():
        assert load_cuda().device_count() == 1


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


@pytest.mark.parametrize(("arguments", "extra"), [(("tensorrt",), "tensorrt"), ((), "tensorrt-rtx")])
def test_without_cuda_bindings_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingPackageError) as caught:
        load_cuda(*arguments)
    assert caught.value.subject == "cuda-bindings"
    assert caught.value.fix.endswith(f"--extra {extra}")


def test_at_the_end_of_the_process_nothing_is_freed() -> None:
    """CUDA may be gone by then."""
    script = """
import sys
from types import SimpleNamespace
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory
api = SimpleNamespace(cudaMalloc=lambda size: (0, 256), cudaFree=lambda handle: print("freed", handle))
DeviceMemory(Cuda(api), 8)
sys.kept = DeviceMemory(Cuda(api), 8)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "freed 256\n", "the one that nothing refers to"


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

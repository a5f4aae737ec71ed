"""A CUDA runtime in host memory, with the functions of `cuda.bindings.runtime` and less patience than the real one.

* Work put on a stream is done when somebody waits for it, and not before: what is read too early is not there.
* Device addresses are not addresses of this process; every copy is checked against the live allocations, when it is
  queued and again when it runs. New and freed memory holds NaN.
* While a thread records a graph, what may not be recorded invalidates the recording, as it does on a GPU.
"""

# ruff: noqa: N801, N802, N815 - the names are NVIDIA's

from __future__ import annotations

import ctypes
import enum
import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np

Work = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureWrongThread = 908


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


E = cudaError_t
_POISON = 0xFF  # NaN in every float type
_DEFAULT_STREAMS = (1, 2)  # the legacy default stream and that of each thread
_FIRST_DEVICE_ADDRESS = 1 << 52  # no process of this machine has memory there: to touch it is to crash


class CudaError(Exception):
    """What a call returns as its first value."""

    def __init__(self, code: cudaError_t) -> None:
        super().__init__(code.name)
        self.code = code


class Handle:
    """A stream, event or graph as cuda-bindings gives it: no number, but it has one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


@dataclass
class Memory:
    data: np.ndarray
    device: int | None  # None: pinned host memory
    mapped: bool = False


@dataclass
class StreamState:
    device: int
    pending: list[Work] = field(default_factory=list)
    queued: int = 0  # ever
    done: int = 0
    recorder: int | None = None  # the thread that records
    mode: int = 0  # of the recording
    recorded: list[Work] = field(default_factory=list)
    invalid: bool = False


@dataclass
class EventState:
    """An event as it was recorded last: on which stream, and behind how much work."""

    stream: int | None = None
    position: int = 0


@dataclass(frozen=True)
class SimulatedMachine:
    """What there is to find."""

    gpus: int = 1
    has_driver: bool = True
    compute_capability: tuple[int, int] = (8, 9)
    integrated: bool = False
    can_map: bool = True
    memory_bytes: int = 1 << 30
    reuses_addresses: bool = False  # of freed device memory, as GPUs do; what still uses them goes unnoticed then


class SimulatedCuda:
    """Stands in `sys.modules` for `cuda.bindings.runtime`."""

    __spec__ = ModuleSpec("cuda.bindings.runtime", None)
    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaDeviceAttr = cudaDeviceAttr

    def __init__(self, machine: SimulatedMachine | None = None) -> None:
        self.machine = machine or SimulatedMachine()
        self.calls: list[str] = []
        self.runtimes: deque[Any] = deque(maxlen=1)  # the last TensorRT runtime made on it
        self.fail_next: dict[str, cudaError_t] = {}  # the next call of a name fails so
        self._lock = threading.RLock()
        self._handles = itertools.count(16)
        self._device_addresses = itertools.count(_FIRST_DEVICE_ADDRESS, 1 << 32)
        self._memory: dict[int, Memory] = {}
        self._freed: deque[Memory] = deque(maxlen=8)  # kept a while, so that a late look finds NaN
        self._reusable: list[int] = []
        self._aliases: dict[int, int] = {}  # device address of mapped memory → host address
        self._streams = {handle: StreamState(0) for handle in _DEFAULT_STREAMS}
        self._events: dict[int, EventState] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._thread = threading.local()
        self._fatal: cudaError_t | None = None

    # What tests and the simulated TensorRT ask.

    @property
    def current_device(self) -> int:
        return getattr(self._thread, "device", 0)

    def in_use(self) -> dict[str, int]:
        """Count what was not given back."""
        return {
            "memory": len(self._memory),
            "streams": len(self._streams) - len(_DEFAULT_STREAMS),
            "events": len(self._events),
            "graphs": len(self._graphs) + len(self._executables),
        }

    def device_view(self, address: int, size: int) -> np.ndarray:
        """The bytes at a device address, or a CudaError if they are not all in one live allocation."""
        for alias, host in self._aliases.items():
            if alias <= address < alias + (1 << 32):
                return self._view(host + address - alias, size, on_device=False)
        return self._view(address, size, on_device=True)

    def stream(self, handle: int) -> StreamState:
        if handle not in self._streams:
            raise CudaError(E.cudaErrorInvalidResourceHandle)
        return self._streams[handle]

    def queue(self, handle: int, work: Work) -> None:
        """Put work on a stream, or into the graph that is recorded there."""
        with self._lock:
            state = self.stream(handle)
            if state.recorder is not None:
                state.recorded.append(work)
                return
            state.pending.append(work)
            state.queued += 1

    # The API.

    def cudaGetDeviceCount(self):
        return self._do("cudaGetDeviceCount", lambda: self.machine.gpus)

    def cudaDriverGetVersion(self):
        return E.cudaSuccess, 13000 if self.machine.has_driver else 0

    def cudaRuntimeGetVersion(self):
        return E.cudaSuccess, 13000

    def cudaDeviceGetAttribute(self, attribute, device):
        _require(attribute, cudaDeviceAttr)
        major, minor = self.machine.compute_capability
        values = {75: major, 76: minor, 18: int(self.machine.integrated), 19: int(self.machine.can_map)}
        return self._do("cudaDeviceGetAttribute", lambda: values[attribute] if self._exists(device) else None)

    def cudaGetDeviceProperties(self, device):
        found = SimpleNamespace(name=b"Simulated GPU\0\0")
        return self._do("cudaGetDeviceProperties", lambda: found if self._exists(device) else None)

    def cudaSetDevice(self, device):
        def work() -> None:
            self._exists(device)
            self._thread.device = device

        return self._do("cudaSetDevice", work)[:1]

    def cudaMalloc(self, size):
        def work() -> int:
            self._forbid_while_recording()
            if self._used() + size > self.machine.memory_bytes:
                raise CudaError(E.cudaErrorMemoryAllocation)
            address = heapq.heappop(self._reusable) if self._reusable else next(self._device_addresses)
            self._memory[address] = Memory(np.full(size, _POISON, np.uint8), self.current_device)
            return address

        return self._do("cudaMalloc", work)

    def cudaFree(self, address):
        return self._do("cudaFree", lambda: self._free(int(address), on_device=True))[:1]

    def cudaHostAlloc(self, size, flags):
        def work() -> int:
            self._forbid_while_recording()
            assert flags in (0, 2)
            data = np.full(size, _POISON, np.uint8)
            self._memory[data.ctypes.data] = Memory(data, None, mapped=flags == 2)
            return data.ctypes.data

        return self._do("cudaHostAlloc", work)

    def cudaFreeHost(self, address):
        return self._do("cudaFreeHost", lambda: self._free(int(address), on_device=False))[:1]

    def cudaHostGetDevicePointer(self, address, flags):
        def work() -> int:
            memory = self._memory.get(address)
            if memory is None or not memory.mapped or flags != 0:
                raise CudaError(E.cudaErrorInvalidValue)
            alias = next(self._device_addresses)
            self._aliases[alias] = address
            return alias

        return self._do("cudaHostGetDevicePointer", work)

    def cudaPointerGetAttributes(self, address):
        def work() -> SimpleNamespace:
            for start, memory in self._memory.items():
                if start <= address < start + len(memory.data):
                    kind = 1 if memory.device is None else 2
                    return SimpleNamespace(type=kind, device=memory.device or 0)
            return SimpleNamespace(type=0, device=-1)

        return self._do("cudaPointerGetAttributes", work)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        _require(kind, cudaMemcpyKind)

        def copy() -> None:
            into = self._copy_end(target, size, kind in (1, 3))
            into[:] = self._copy_end(source, size, kind in (2, 3))

        def work() -> None:
            self._copy_end(target, size, kind in (1, 3))
            self._copy_end(source, size, kind in (2, 3))
            self.queue(int(stream), copy)

        return self._do("cudaMemcpyAsync", work)[:1]

    def cudaStreamCreateWithFlags(self, flags):
        def work() -> Handle:
            assert flags in (0, 1)
            handle = next(self._handles)
            self._streams[handle] = StreamState(self.current_device)
            return Handle(handle)

        return self._do("cudaStreamCreateWithFlags", work)

    def cudaStreamDestroy(self, stream):
        return self._do("cudaStreamDestroy", lambda: self._pop(self._streams, stream))[:1]

    def cudaStreamSynchronize(self, stream):
        def work() -> None:
            self._forbid_while_recording()
            state = self.stream(int(stream))
            self._drain(state, state.queued)

        return self._do("cudaStreamSynchronize", work)[:1]

    def cudaStreamWaitEvent(self, stream, event, flags):
        def work() -> None:
            assert flags == 0
            awaited = self._event(event)  # as it is now: recorded anew, it is another point in time
            if awaited.stream is not None:
                self.queue(int(stream), lambda: self._drain(self.stream(awaited.stream), awaited.position))

        return self._do("cudaStreamWaitEvent", work)[:1]

    def cudaEventCreateWithFlags(self, flags):
        def work() -> Handle:
            assert flags == 2
            handle = next(self._handles)
            self._events[handle] = EventState()
            return Handle(handle)

        return self._do("cudaEventCreateWithFlags", work)

    def cudaEventDestroy(self, event):
        return self._do("cudaEventDestroy", lambda: self._pop(self._events, event))[:1]

    def cudaEventRecord(self, event, stream):
        def work() -> None:
            self._event(event)
            recorded = EventState(int(stream))
            self.queue(int(stream), lambda: None)
            recorded.position = self.stream(int(stream)).queued
            self._events[int(event)] = recorded

        return self._do("cudaEventRecord", work)[:1]

    def cudaStreamBeginCapture(self, stream, mode):
        _require(mode, cudaStreamCaptureMode)

        def work() -> None:
            state = self.stream(int(stream))
            if state.recorder is not None:
                raise CudaError(E.cudaErrorInvalidValue)
            state.recorder, state.recorded, state.invalid = threading.get_ident(), [], False
            state.mode = int(mode)

        return self._do("cudaStreamBeginCapture", work)[:1]

    def cudaStreamEndCapture(self, stream):
        def work() -> Handle:
            state = self.stream(int(stream))
            if state.recorder is None:
                raise CudaError(E.cudaErrorInvalidValue)
            if state.recorder != threading.get_ident():
                raise CudaError(E.cudaErrorStreamCaptureWrongThread)
            state.recorder = None
            if state.invalid:
                raise CudaError(E.cudaErrorStreamCaptureInvalidated)
            handle = next(self._handles)
            self._graphs[handle] = state.recorded
            return Handle(handle)

        return self._do("cudaStreamEndCapture", work)

    def cudaGraphInstantiate(self, graph, flags):
        def work() -> Handle:
            assert flags == 0
            handle = next(self._handles)
            self._executables[handle] = list(self._graphs[int(graph)])
            return Handle(handle)

        return self._do("cudaGraphInstantiate", work)

    def cudaGraphLaunch(self, executable, stream):
        def work() -> None:
            for step in self._executables[int(executable)]:
                self.queue(int(stream), step)

        return self._do("cudaGraphLaunch", work)[:1]

    def cudaGraphDestroy(self, graph):
        return self._do("cudaGraphDestroy", lambda: self._pop(self._graphs, graph))[:1]

    def cudaGraphExecDestroy(self, executable):
        return self._do("cudaGraphExecDestroy", lambda: self._pop(self._executables, executable))[:1]

    def cudaGetLastError(self):
        self.calls.append("cudaGetLastError")
        return (E.cudaSuccess,)

    def cudaGetErrorName(self, code):
        return E.cudaSuccess, E(code).name.encode()

    # Below: how.

    def _do(self, name: str, work: Callable[[], object]):
        with self._lock:
            self.calls.append(name)
            if not self.machine.has_driver:
                return E.cudaErrorInsufficientDriver, None
            if name in self.fail_next:
                return self.fail_next.pop(name), None
            if self._fatal is not None:
                return self._fatal, None
            try:
                return E.cudaSuccess, work()
            except CudaError as failure:
                if failure.code is E.cudaErrorIllegalAddress:
                    self._fatal = failure.code
                return failure.code, None

    def _exists(self, device: int) -> bool:
        if not 0 <= device < self.machine.gpus:
            raise CudaError(E.cudaErrorInvalidDevice if self.machine.gpus else E.cudaErrorNoDevice)
        return True

    def _used(self) -> int:
        return sum(len(m.data) for m in self._memory.values() if m.device is not None)

    def _view(self, address: int, size: int, *, on_device: bool) -> np.ndarray:
        for start, memory in self._memory.items():
            inside = start <= address and address + size <= start + len(memory.data)
            if inside and (memory.device is not None) == on_device:
                return memory.data[address - start : address - start + size]
        raise CudaError(E.cudaErrorInvalidValue)

    def _copy_end(self, address: int, size: int, on_device: bool) -> np.ndarray:
        """One end of a copy: device memory, pinned memory, or ordinary memory of the process."""
        if on_device:
            return self.device_view(int(address), size)
        if address >= _FIRST_DEVICE_ADDRESS:
            raise CudaError(E.cudaErrorInvalidValue)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def _free(self, address: int, *, on_device: bool) -> None:
        self._forbid_while_recording()
        memory = self._memory.get(address)
        if memory is None or (memory.device is not None) != on_device:
            raise CudaError(E.cudaErrorInvalidValue)
        memory.data[:] = _POISON
        self._freed.append(self._memory.pop(address))
        if on_device and self.machine.reuses_addresses:
            heapq.heappush(self._reusable, address)
        self._aliases = {alias: host for alias, host in self._aliases.items() if host != address}

    def _forbid_while_recording(self) -> None:
        recording = [s for s in self._streams.values() if s.recorder is not None and s.mode != 2]  # 2: relaxed
        spoiled = [s for s in recording if s.mode == 0 or s.recorder == threading.get_ident()]  # 0: global
        for state in spoiled:
            state.invalid = True
        if spoiled:
            raise CudaError(E.cudaErrorStreamCaptureUnsupported)

    def _event(self, handle: Any) -> EventState:
        if int(handle) not in self._events:
            raise CudaError(E.cudaErrorInvalidResourceHandle)
        return self._events[int(handle)]

    def _drain(self, state: StreamState, position: int) -> None:
        while state.pending and state.done < position:
            step = state.pending.pop(0)
            state.done += 1
            try:
                step()
            except CudaError:
                raise CudaError(E.cudaErrorIllegalAddress) from None  # the memory went away before the work ran

    @staticmethod
    def _pop(table: dict, handle: int) -> None:
        if int(handle) not in table:
            raise CudaError(E.cudaErrorInvalidResourceHandle)
        del table[int(handle)]


def _require(value: object, kind: type) -> None:
    """cuda-bindings takes members of its enumerations, and versions before 13 nothing else."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")

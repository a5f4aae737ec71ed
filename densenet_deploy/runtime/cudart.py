"""The part of the CUDA runtime that running an engine needs, with every return value checked; without PyTorch.

>>> cuda = load_cuda()                                  # doctest: +SKIP
>>> cuda.gpu(0).name                                    # doctest: +SKIP
'NVIDIA RTX 2000 Ada Generation'

It uses cuda-bindings. Memory, streams and graphs are released when nothing refers to them any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import (
    BackendError,
    DensenetDeployError,
    DeviceError,
    MissingPackageError,
    ResourceError,
)
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.nvidia import Gpu

# Numbers of the CUDA runtime API, the same in every version.
_OUT_OF_MEMORY: Final = 2
_NO_DEVICE: Final = frozenset({3, 34, 35, 36, 46, 100, 101, 802, 803, 804})  # missing, too old or in use
_FATAL: Final = frozenset({214, 700, 702, 710, 714, 715, 716, 717, 718, 719})  # the process can't use the GPU any more
_TO_DEVICE, _TO_HOST = 1, 2
_MAPPED: Final = 2
_NON_BLOCKING: Final = 1
_NO_TIMING: Final = 2
_CAPTURE_THIS_THREAD: Final = 1
_MAJOR, _MINOR, _INTEGRATED, _CAN_MAP = 75, 76, 18, 19
_ON_GPU: Final = (2, 3)  # memory types: device, managed
_FIX: Final = "run densenet-deploy doctor"


class Cuda:
    """A loaded CUDA runtime.

    Everything here raises a DeviceError if no driver or device answers, a ResourceError if memory runs out, and a
    BackendError for other failures. After an error from which a process cannot recover, every call raises it again.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._fatal: str | None = None
        self._process = os.getpid()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call `name` and return its value, its values as a tuple, or None."""
        if self._fatal:
            why = f"{self._fatal} earlier: this process can no longer use the GPU"
            raise BackendError("CUDA", why, "restart the process")
        code, *values = getattr(self._api, name)(*arguments)
        if code:
            raise self._error(name, int(code))
        return values[0] if len(values) == 1 else tuple(values) or None

    def device_count(self) -> int:
        """Return how many GPUs answer."""
        count: int = self("cudaGetDeviceCount")
        return count

    def gpu(self, index: int) -> Gpu:
        """Describe a device."""
        if index >= (count := self.device_count()):
            raise DeviceError(f"cuda:{index}", f"CUDA finds {count} device(s)", "use a smaller number")
        name = bytes(self("cudaGetDeviceProperties", index).name).split(b"\0")[0].decode(errors="replace")
        return Gpu(index, name, f"{self._attribute(_MAJOR, index)}.{self._attribute(_MINOR, index)}")

    def shares_memory(self, index: int) -> bool:
        """Whether CPU and GPU share one memory, so that nothing has to be copied (Jetson)."""
        return bool(self._attribute(_INTEGRATED, index) and self._attribute(_CAN_MAP, index))

    def driver_version(self) -> int:
        """Return the newest CUDA that the driver knows: 13000 for 13.0."""
        version: int = self("cudaDriverGetVersion")
        return version

    def use(self, index: int) -> None:
        """Make `index` the device of this thread."""
        self("cudaSetDevice", index)

    def device_of(self, address: int) -> int | None:
        """Return the GPU that the memory at `address` is on, or None if it is not on a GPU."""
        found = self("cudaPointerGetAttributes", address)
        return int(found.device) if int(found.type) in _ON_GPU else None

    def free(self, name: str, handle: Any) -> None:
        """Free `handle` by calling `name`, ignoring failures, which nobody could handle."""
        if os.getpid() != self._process:  # a forked child owns nothing on the GPU
            return
        with contextlib.suppress(Exception):
            getattr(self._api, name)(handle)

    def clear_error(self) -> None:
        """Clear the last error, which a later call would report again."""
        self._api.cudaGetLastError()

    def enum(self, kind: str, value: int) -> Any:
        """Return `value` as a member of an enumeration, which some versions of cuda-bindings insist on."""
        return getattr(self._api, kind)(value)

    def _attribute(self, attribute: int, index: int) -> int:
        value: int = self("cudaDeviceGetAttribute", self.enum("cudaDeviceAttr", attribute), index)
        return value

    def _error(self, name: str, code: int) -> DensenetDeployError:
        problem = f"{name} failed with {self._name_of(code)} ({code})"
        if code in _FATAL:
            self._fatal = problem
            why = f"{problem}: this process can no longer use the GPU"
            return BackendError("CUDA", why, "restart the process")
        if code == _OUT_OF_MEMORY:
            return ResourceError("GPU memory", problem, "use a smaller batch or fewer streams, or close other programs")
        if code in _NO_DEVICE:
            return DeviceError("cuda", f"no NVIDIA GPU answers: {problem}", "install the driver, or use another device")
        return BackendError("CUDA", problem, _FIX)

    def _name_of(self, code: int) -> str:
        try:
            text = self._api.cudaGetErrorName(self.enum("cudaError_t", code))[1]
        except ValueError:  # newer than these bindings
            text = None
        return bytes(text or b"an unknown error").decode()


class _Owned:
    """A resource of CUDA, freed when nothing refers to it any more."""

    def __init__(self, cuda: Cuda, handle: Any, destroy: str) -> None:
        self._cuda = cuda
        self.handle = handle
        finalizer = weakref.finalize(self, cuda.free, destroy, handle)
        finalizer.atexit = False  # the end of the process frees everything, and CUDA may be gone by then

    def __int__(self) -> int:
        return int(self.handle)


class DeviceMemory(_Owned):
    """Memory on the current device: `address` and `size` in bytes."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        super().__init__(cuda, cuda("cudaMalloc", size), "cudaFree")
        self.address, self.size = int(self.handle), size


class PinnedMemory(_Owned):
    """Page-locked host memory, which the GPU copies by itself; with `mapped` it also reads and writes it in place.

    `bytes` is a view of it, valid as long as this object lives. `device_address` is its address on the GPU.
    """

    def __init__(self, cuda: Cuda, size: int, *, mapped: bool = False) -> None:
        super().__init__(cuda, cuda("cudaHostAlloc", size, _MAPPED if mapped else 0), "cudaFreeHost")
        self.address, self.size = int(self.handle), size
        self.bytes: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))
        self.device_address = int(cuda("cudaHostGetDevicePointer", self.address, 0)) if mapped else None


class Graph(_Owned):
    """Work recorded once and launched as a whole."""

    def launch(self, stream: Stream) -> None:
        """Queue the work on `stream`."""
        self._cuda("cudaGraphLaunch", self.handle, stream.handle)


class Stream(_Owned):
    """A queue of work on the current device, independent of the default stream."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(cuda, cuda("cudaStreamCreateWithFlags", _NON_BLOCKING), "cudaStreamDestroy")

    def copy_in(self, memory: DeviceMemory, source: PinnedMemory, size: int) -> None:
        """Queue a copy of `size` bytes to the device. Neither side may be touched before `synchronize`."""
        self._copy(memory.address, source.address, size, _TO_DEVICE)

    def copy_out(self, target: PinnedMemory, memory: DeviceMemory, size: int) -> None:
        """Queue a copy of `size` bytes from the device. Neither side may be touched before `synchronize`."""
        self._copy(target.address, memory.address, size, _TO_HOST)

    def copy_to_host(self, target: Array, address: int) -> None:
        """Copy from a device `address` into a contiguous array, and wait for it."""
        self._copy(target.ctypes.data, address, target.nbytes, _TO_HOST)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        self._cuda("cudaStreamSynchronize", self.handle)

    def wait_for(self, other: int) -> None:
        """Make later work wait for what is now queued on the stream with the handle `other`."""
        event = _Owned(self._cuda, self._cuda("cudaEventCreateWithFlags", _NO_TIMING), "cudaEventDestroy")
        self._cuda("cudaEventRecord", event.handle, other)
        self._cuda("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` queues on this stream, without running it.

        Raises:
            DensenetDeployError: if it cannot be recorded; the stream is then usable again.
        """
        mode = self._cuda.enum("cudaStreamCaptureMode", _CAPTURE_THIS_THREAD)
        self._cuda("cudaStreamBeginCapture", self.handle, mode)
        try:
            enqueue()
            recorded = self._end_capture()
        except BaseException:
            with contextlib.suppress(DensenetDeployError):
                self._end_capture()
            self._cuda.clear_error()
            raise
        executable = self._cuda("cudaGraphInstantiate", recorded.handle, 0)
        return Graph(self._cuda, executable, "cudaGraphExecDestroy")

    def _end_capture(self) -> _Owned:
        return _Owned(self._cuda, self._cuda("cudaStreamEndCapture", self.handle), "cudaGraphDestroy")

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._cuda("cudaMemcpyAsync", target, source, size, self._cuda.enum("cudaMemcpyKind", kind), self.handle)


def load_cuda(extra: str = "tensorrt-rtx") -> Cuda:
    """Return the CUDA runtime, which the install extra `extra` brings.

    Raises:
        MissingPackageError: if cuda-bindings is not installed.
        DeviceError: if no driver or GPU answers.
    """
    try:
        cuda = Cuda(importlib.import_module("cuda.bindings.runtime"))
    except ImportError as exc:
        raise MissingPackageError.of("cuda-bindings", extra) from exc
    if cuda.device_count() == 0:
        raise DeviceError("cuda", "CUDA finds no GPU", _FIX)
    return cuda

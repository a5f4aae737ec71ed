"""The simulated CUDA runtime as a C library: functions that ctypes calls with C types and pointers to results.

The prototypes are those of NVIDIA's `cuda_runtime_api.h`, written down here a second time on purpose.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

from tests.runtime.simulated_tensorrt.cuda import Handle, SimulatedCuda

_POINTER, _INT, _SIZE = c_void_p, c_int, c_size_t
# name: the results in front, then the arguments
_RESULT_FIRST: dict[str, tuple[list[Any], list[Any]]] = {
    "cudaGetDeviceCount": ([_INT], []),
    "cudaDriverGetVersion": ([_INT], []),
    "cudaRuntimeGetVersion": ([_INT], []),
    "cudaDeviceGetAttribute": ([_INT], [_INT, _INT]),
    "cudaMemGetInfo": ([_SIZE, _SIZE], []),
    "cudaMalloc": ([_POINTER], [_SIZE]),
    "cudaHostAlloc": ([_POINTER], [_SIZE, c_uint]),
    "cudaHostGetDevicePointer": ([_POINTER], [_POINTER, c_uint]),
    "cudaStreamCreateWithFlags": ([_POINTER], [c_uint]),
    "cudaEventCreateWithFlags": ([_POINTER], [c_uint]),
    "cudaEventElapsedTime": ([c_float], [_POINTER, _POINTER]),
    "cudaGraphInstantiate": ([_POINTER], [_POINTER, c_ulonglong]),
}
_PLAIN: dict[str, list[Any]] = {
    "cudaSetDevice": [_INT],
    "cudaSetDeviceFlags": [c_uint],
    "cudaFree": [_POINTER],
    "cudaFreeHost": [_POINTER],
    "cudaMemcpyAsync": [_POINTER, _POINTER, _SIZE, _INT, _POINTER],
    "cudaStreamDestroy": [_POINTER],
    "cudaStreamSynchronize": [_POINTER],
    "cudaStreamWaitEvent": [_POINTER, _POINTER, c_uint],
    "cudaStreamBeginCapture": [_POINTER, _INT],
    "cudaEventDestroy": [_POINTER],
    "cudaEventRecord": [_POINTER, _POINTER],
    "cudaEventSynchronize": [_POINTER],
    "cudaGraphLaunch": [_POINTER, _POINTER],
    "cudaGraphDestroy": [_POINTER],
    "cudaGraphExecDestroy": [_POINTER],
    "cudaGetLastError": [],
}
_ENUMS = {("cudaMemcpyAsync", 3): "cudaMemcpyKind", ("cudaStreamBeginCapture", 1): "cudaStreamCaptureMode"}


class PointerAttributes(ctypes.Structure):
    _fields_ = (("type", c_int), ("device", c_int), ("devicePointer", c_void_p), ("hostPointer", c_void_p))


class SimulatedLibrary:
    """What `ctypes.CDLL("libcudart.so")` would be."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        for name, arguments in _PLAIN.items():
            setattr(self, name, CFUNCTYPE(c_int, *arguments)(self._plain(name)))
        for name, (results, arguments) in _RESULT_FIRST.items():
            pointers = [POINTER(kind) for kind in results]
            setattr(self, name, CFUNCTYPE(c_int, *pointers, *arguments)(self._result_first(name, len(results))))
        self.cudaStreamEndCapture = CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p))(self._end_capture)
        self.cudaGetDeviceProperties = CFUNCTYPE(c_int, POINTER(ctypes.c_char * 256), c_int)(self._properties)
        self.cudaPointerGetAttributes = CFUNCTYPE(c_int, POINTER(PointerAttributes), c_void_p)(self._attributes)
        texts = {int(code): ctypes.create_string_buffer(code.name.encode()) for code in cuda.cudaError_t}
        other = ctypes.create_string_buffer(b"unrecognized error code")
        self.cudaGetErrorName = CFUNCTYPE(c_void_p, c_int)(lambda code: ctypes.addressof(texts.get(code, other)))

    def _plain(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            return int(getattr(self._cuda, name)(*self._converted(name, arguments))[0])

        return call

    def _result_first(self, name: str, count: int) -> Any:
        def call(*arguments: Any) -> int:
            results, rest = arguments[:count], list(arguments[count:])
            if name == "cudaDeviceGetAttribute":
                rest[0] = self._cuda.cudaDeviceAttr(rest[0])
            code, *values = getattr(self._cuda, name)(*rest)
            for pointer, value in zip(results, values, strict=True):
                if value is not None:
                    pointer[0] = int(value) if isinstance(value, Handle) else value
            return int(code)

        return call

    def _converted(self, name: str, arguments: tuple[Any, ...]) -> list[Any]:
        enums = [_ENUMS.get((name, position)) for position in range(len(arguments))]
        return [
            getattr(self._cuda, kind)(value) if kind else value for kind, value in zip(enums, arguments, strict=True)
        ]

    def _end_capture(self, stream: int, graph: Any) -> int:
        code, value = self._cuda.cudaStreamEndCapture(stream)
        graph[0] = None if value is None else int(value)
        return int(code)

    def _properties(self, name: Any, device: int) -> int:
        code, found = self._cuda.cudaGetDeviceProperties(device)
        if found is not None:
            ctypes.memmove(name, found.name, len(found.name))
        return int(code)

    def _attributes(self, result: Any, address: int) -> int:
        code, found = self._cuda.cudaPointerGetAttributes(address)
        if found is not None:
            result[0].type, result[0].device = found.type, found.device
        return int(code)

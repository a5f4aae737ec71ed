"""`libcudart` through ctypes, in the shape of `cuda.bindings.runtime`: functions that return `(error, *values)`.

For machines where cuda-bindings is missing or wants a newer driver, JetPack 6 for one. Only the calls of `cudart.py`
are here. Handles and addresses are plain whole numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_char, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

Result = tuple[Any, ...]

_NAMES: Final = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "/usr/local/cuda/lib64/libcudart.so")
_IN: Final = {
    "cudaSetDevice": (c_int,),
    "cudaSetDeviceFlags": (c_uint,),
    "cudaFree": (c_void_p,),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGetLastError": (),
}
# calls whose first argument receives the one value that they return
_OUT: Final[dict[str, tuple[Any, ...]]] = {
    "cudaGetDeviceCount": (c_int,),
    "cudaDriverGetVersion": (c_int,),
    "cudaRuntimeGetVersion": (c_int,),
    "cudaDeviceGetAttribute": (c_int, c_int, c_int),
    "cudaMalloc": (c_void_p, c_size_t),
    "cudaHostAlloc": (c_void_p, c_size_t, c_uint),
    "cudaHostGetDevicePointer": (c_void_p, c_void_p, c_uint),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaEventCreateWithFlags": (c_void_p, c_uint),
    "cudaEventElapsedTime": (c_float, c_void_p, c_void_p),
}


class _PointerAttributes(ctypes.Structure):
    """`cudaPointerAttributes`; later fields are unused."""

    _fields_ = (
        ("type", c_int),
        ("device", c_int),
        ("devicePointer", c_void_p),
        ("hostPointer", c_void_p),
        ("reserved", c_void_p * 8),
    )


class CudartLibrary:
    """The calls of one loaded `libcudart`; enumerations are plain numbers."""

    cudaMemcpyKind = cudaStreamCaptureMode = cudaDeviceAttr = int  # noqa: N815 - NVIDIA's names

    def __init__(self, library: Any) -> None:
        """Declare what every call takes; an AttributeError says which one `library` lacks."""
        self._library = library
        for name, arguments in _IN.items():
            setattr(self, name, self._plain(name, arguments))
        for name, kinds in _OUT.items():
            setattr(self, name, self._returning(name, kinds[0], kinds[1:]))
        self._properties = self._declare("cudaGetDeviceProperties", (c_void_p, c_int))
        self._pointer = self._declare("cudaPointerGetAttributes", (c_void_p, c_void_p))
        self._end = self._declare("cudaStreamEndCapture", (c_void_p, c_void_p))
        self._instantiate = self._declare("cudaGraphInstantiate", (c_void_p, c_void_p, c_ulonglong))
        self._memory = self._declare("cudaMemGetInfo", (c_void_p, c_void_p))
        self._error_name = self._declare("cudaGetErrorName", (c_int,), ctypes.c_char_p)

    def cudaGetDeviceProperties(self, device: int) -> Result:  # noqa: N802 - NVIDIA's name
        """Return the name alone: it is the first field of the structure in every version, and the rest moves about."""
        room = (c_char * 8192)()
        return self._properties(room, device), SimpleNamespace(name=room.value)

    def cudaPointerGetAttributes(self, address: int) -> Result:  # noqa: N802
        """Say of which kind the memory at `address` is, and on which device."""
        found = _PointerAttributes()
        return self._pointer(byref(found), address), found

    def cudaStreamEndCapture(self, stream: int) -> Result:  # noqa: N802
        """Return the recorded graph."""
        graph = c_void_p()
        return self._end(stream, byref(graph)), graph.value

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Result:  # noqa: N802
        """Return a graph that can be launched."""
        executable = c_void_p()
        return self._instantiate(byref(executable), graph, flags), executable.value

    def cudaMemGetInfo(self) -> Result:  # noqa: N802
        """Return free and total bytes."""
        free, total = c_size_t(), c_size_t()
        return self._memory(byref(free), byref(total)), free.value, total.value

    def cudaGetErrorName(self, code: int) -> Result:  # noqa: N802
        """Return NVIDIA's name of an error."""
        return 0, self._error_name(code)

    def _declare(self, name: str, arguments: tuple[Any, ...], result: Any = c_int) -> Any:
        function = getattr(self._library, name)
        function.argtypes, function.restype = arguments, result
        return function

    def _plain(self, name: str, arguments: tuple[Any, ...]) -> Any:
        function = self._declare(name, arguments)
        return lambda *values: (function(*values),)

    def _returning(self, name: str, kind: Any, arguments: tuple[Any, ...]) -> Any:
        function = self._declare(name, (c_void_p, *arguments))

        def call(*values: Any) -> Result:
            result = kind()
            return function(byref(result), *values), result.value

        return call


def found_libraries() -> Iterator[CudartLibrary]:
    """Yield every `libcudart` that loads, those the system knows first, then those that pip installed."""
    for name in (*_NAMES, *_installed()):
        try:
            yield CudartLibrary(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue


def _installed() -> list[str]:
    spec = find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [str(path) for folder in folders for path in sorted(Path(folder).glob("*/lib/libcudart.so.*"))]

"""Arrays that stay on the GPU: those of any library, read through a protocol, and our own, which offer both protocols.

CuPy, PyTorch and Numba support `__cuda_array_interface__`
(https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html), others only DLPack; neither side has to import the
other.

A DLPack capsule holds a C struct with the place of an array, and a function to call when it is no longer needed. There
are two kinds, distinguished by name: with a version and flags (since DLPack 1.0), and without. The consumer renames the
capsule and thereby becomes responsible for that call. Capsules are opened and made here with ctypes alone; see
https://dmlc.github.io/dlpack/latest/ and `__dlpack__` of the array API standard.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.errors import FeedError
from densenet_deploy.runtime.cudart import Cuda, DeviceMemory, Stream
from densenet_deploy.runtime.feeds import Array, TensorSpec

_ALIGNMENT: Final = 256  # bytes, what cudaMalloc gives and TensorRT wants
_DEFAULT_STREAM: Final = 1  # may still work on arrays that name no stream (PyTorch's)
CPU: Final = 1
"""DLPack's device type of host memory."""

_GPUS: Final = (2, 13)  # DLPack's device types of CUDA: device memory, managed memory
_MAJOR: Final = 1
_READ_ONLY: Final = 1
_NAMES: Final = {False: b"dltensor", True: b"dltensor_versioned"}
_USED: Final = {False: b"used_dltensor", True: b"used_dltensor_versioned"}
_KINDS: Final = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_CODES: Final = {kind: code for code, kind in _KINDS.items()}


class GpuArray:
    """An array in its own memory on the GPU, complete when it is returned.

    >>> torch.from_dlpack(array), cupy.asarray(array), array.to_host()      # doctest: +SKIP
    """

    def __init__(self, cuda: Cuda, device: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._cuda, self._device = cuda, device
        self._memory = DeviceMemory(cuda, math.prod(shape) * dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,  # no work is in progress
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _GPUS[0], self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("the runner shares its arrays where they are; copy them there, or with to_host()")
        return make_capsule(
            self._memory.address,
            self.shape,
            self.dtype,
            self.__dlpack_device__(),
            self._memory,
            versioned=max_version is not None and max_version >= (1, 0),
        )

    def to_host(self) -> Array:
        """Return a copy as a numpy array."""
        self._cuda.use(self._device)
        array = np.empty(self.shape, self.dtype)
        Stream(self._cuda).copy_to_host(array, self._memory.address)
        return array


@dataclass(frozen=True)
class GpuView:
    """A caller's array on the GPU, valid as long as `owner` lives; on `stream`, if any, work on it is in progress."""

    address: int
    shape: tuple[int, ...]
    stream: int | None
    owner: object


def view_of(array: object, spec: TensorSpec, cuda: Cuda, device: int, *, writable: bool = False) -> GpuView:
    """Return a view of an array on the GPU after checking it against `spec`.

    Raises:
        FeedError: if it is not on this GPU, or has another type, shape or layout.
    """
    facts = _facts_of(array, spec, device)
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    if dtype != spec.dtype:
        raise FeedError(spec.name, f"is {dtype}, the model takes {spec.dtype}", "convert it on the GPU")
    if not spec.fits(shape):
        raise FeedError(spec.name, f"has shape {shape}, the model takes {spec}", "resize or batch it to fit")
    if facts.get("strides") not in (None, _packed_strides(shape, dtype.itemsize)):
        raise FeedError(spec.name, "is not contiguous", "make it contiguous on the GPU")
    address, read_only = facts["data"]
    if writable and read_only:
        raise FeedError(spec.name, "is read-only", "give a buffer that can be written")
    if address % _ALIGNMENT:
        raise FeedError(spec.name, f"does not start at a multiple of {_ALIGNMENT} bytes", "copy it on the GPU")
    if (found := cuda.device_of(address)) != device:
        where = "not on a GPU" if found is None else f"on cuda:{found}"
        raise FeedError(spec.name, f"is {where}, the model on cuda:{device}", "copy it to the model's GPU")
    return GpuView(int(address), shape, facts.get("stream", _DEFAULT_STREAM), facts.get("owner", array))


def _facts_of(array: object, spec: TensorSpec, device: int) -> dict[str, Any]:
    """Return the description of the array in the form of `__cuda_array_interface__`."""
    try:
        facts = getattr(array, "__cuda_array_interface__", None)
        if facts is None and hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            facts = _from_dlpack(array, spec, device)
    except FeedError:
        raise
    except Exception as exc:  # PyTorch's, for a tensor that requires a gradient
        raise FeedError(spec.name, f"does not share its memory: {exc}", "detach or copy it") from exc
    if isinstance(facts, dict):
        return facts
    kind = type(array).__name__
    why = f"is a {kind} without __cuda_array_interface__ or __dlpack__"
    raise FeedError(spec.name, why, "give an array on the GPU")


def _from_dlpack(array: Any, spec: TensorSpec, device: int) -> dict[str, Any]:
    """Describe an array through DLPack: its owner makes the default stream wait for work in progress."""
    kind, index = array.__dlpack_device__()
    if int(kind) not in _GPUS or index != device:
        where = f"on cuda:{index}" if int(kind) in _GPUS else "not on a GPU"
        raise FeedError(spec.name, f"is {where}, the model on cuda:{device}", "copy it to the model's GPU")
    try:
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM, max_version=(1, 0))
    except TypeError:  # of a library without DLPack versions
        capsule = array.__dlpack__(stream=_DEFAULT_STREAM)
    shared = open_capsule(capsule)
    return {
        "shape": shared.shape,
        "typestr": shared.dtype.str,
        "strides": shared.strides,
        "data": (shared.address, shared.read_only),
        "owner": shared,
    }


def _packed_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Plain(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_STRUCTS: Final[dict[bool, type[_Plain | _Versioned]]] = {False: _Plain, True: _Versioned}
_call_deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


def _capsule_function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API with a prototype of our own: `ctypes.pythonapi` has one for all."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _capsule_function("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _capsule_function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _capsule_function("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_new = _capsule_function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
# A destructor gets a capsule that nothing refers to any more: an address, which must not become an object again.
_dying_is_valid = _capsule_function("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_pointer = _capsule_function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)


@dataclass(frozen=True)
class SharedArray:
    """An array of another library, which stays valid as long as this object lives.

    Attributes:
        address: of its first element.
        dtype: NumPy's.
        strides: in bytes, or None where the array is packed in C order.
        device: DLPack's type of device, and which one.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None
    read_only: bool
    device: tuple[int, int]


def open_capsule(capsule: object) -> SharedArray:
    """Take over the array in a capsule of `__dlpack__`.

    Raises:
        TypeError: if it is not such a capsule, was opened before, or holds a type that NumPy lacks.
        BufferError: if its DLPack version is unknown here.
    """
    versioned = bool(_is_valid(capsule, _NAMES[True]))
    if not versioned and not _is_valid(capsule, _NAMES[False]):
        raise TypeError("this is not a DLPack capsule, or it was used before")
    address = _pointer(capsule, _NAMES[versioned])
    managed = _STRUCTS[versioned].from_address(address)
    _rename(capsule, _USED[versioned])
    try:
        array = _shared_by(managed)
    except BaseException:
        _release(managed.deleter, address)
        raise
    weakref.finalize(array, _release, managed.deleter, address).atexit = False
    return array


def make_capsule(
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    owner: object,
    *,
    versioned: bool,
) -> object:
    """Return a capsule for an array that is packed in C order; `owner` lives until the consumer releases it."""
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    tensor = _Tensor(
        data=address,
        device_type=device[0],
        device_id=device[1],
        ndim=len(shape),
        code=_CODES[dtype.kind],
        bits=dtype.itemsize * 8,
        lanes=1,
        shape=ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
    )
    deleter = ctypes.cast(_DELETER, ctypes.c_void_p).value
    managed = _Versioned(_MAJOR, 0, None, deleter, 0, tensor) if versioned else _Plain(tensor, None, deleter)
    place = ctypes.addressof(managed)
    _lent[place] = (managed, sizes, owner)
    return _new(place, _NAMES[versioned], ctypes.cast(_DESTRUCTOR, ctypes.c_void_p).value)


def _release(deleter: int | None, address: int) -> None:
    if deleter:
        _call_deleter(deleter)(address)


def _shared_by(managed: _Plain | _Versioned) -> SharedArray:
    read_only = False
    if isinstance(managed, _Versioned):
        if managed.major != _MAJOR:
            raise BufferError(f"it uses DLPack {managed.major}.{managed.minor}")
        read_only = bool(managed.flags & _READ_ONLY)
    tensor = managed.tensor
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise TypeError(f"it holds a type that NumPy lacks (DLPack code {tensor.code}, {tensor.bits} bits)")
    dtype, shape = np.dtype(f"{kind}{tensor.bits // 8}"), tuple(tensor.shape[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    strides = _strides(tensor, shape, dtype.itemsize)
    return SharedArray(address, shape, dtype, strides, read_only, (tensor.device_type, tensor.device_id))


def _strides(tensor: _Tensor, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
    if not tensor.strides:
        return None
    strides, packed, expected = tuple(tensor.strides[: tensor.ndim]), True, 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        packed = packed and (size == 1 or stride == expected)  # the stride of a single element does not matter
        expected *= size
    return None if packed else tuple(stride * itemsize for stride in strides)


_lent: Final[dict[int, tuple[Any, ...]]] = {}  # what capsules point to, by address, until they are released


def _end_loan(address: int) -> None:
    _lent.pop(address, None)


def _destroy(capsule: int) -> None:
    """Release the array of a capsule that was never opened."""
    for name in _NAMES.values():
        if _dying_is_valid(capsule, name):
            _lent.pop(_dying_pointer(capsule, name), None)


_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DELETER: Final = _CALLBACK(_end_loan)
_DESTRUCTOR: Final = _CALLBACK(_destroy)

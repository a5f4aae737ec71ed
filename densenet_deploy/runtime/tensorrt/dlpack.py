"""DLPack, which libraries hand arrays to each other by without a copy: its capsules opened and made, by ctypes alone.

A capsule holds a C struct that says where an array lies, and a function to call when nobody looks at it any more. There
are two kinds, told apart by their name: with a version and flags (since DLPack 1.0), and without. Whoever opens a
capsule renames it, and thereby takes over that call. See https://dmlc.github.io/dlpack/latest/ and the array API
standard's `__dlpack__`.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

CPU: Final = 1
GPUS: Final = (2, 13)  # memory of CUDA: on a device, managed
_MAJOR: Final = 1
_READ_ONLY: Final = 1
_NAMES: Final = {False: b"dltensor", True: b"dltensor_versioned"}
_USED: Final = {False: b"used_dltensor", True: b"used_dltensor_versioned"}
_KINDS: Final = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_CODES: Final = {kind: code for code, kind in _KINDS.items()}


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
# Prototypes of our own: those of `ctypes.pythonapi` belong to the whole process.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# A destructor gets a capsule that nothing refers to any more: an address, which must not become an object again.
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True)
class SharedArray:
    """Somebody's array, which stays where it is for as long as this object lives.

    Attributes:
        address: of its first element.
        dtype: as numpy has it.
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
    """Take over what a capsule of `__dlpack__` holds.

    Raises:
        TypeError: if it is no such capsule, was opened before, or holds a type that numpy has not.
        BufferError: if it is of a DLPack that is not known here.
    """
    versioned = bool(_is_valid(capsule, _NAMES[True]))
    if not versioned and not _is_valid(capsule, _NAMES[False]):
        raise TypeError("it gave no DLPack capsule, or one that was used before")
    address = _pointer(capsule, _NAMES[versioned])
    managed = _STRUCTS[versioned].from_address(address)
    _rename(capsule, _USED[versioned])
    try:
        array = _shared_by(managed)
    except BaseException:
        _give_back(managed.deleter, address)
        raise
    weakref.finalize(array, _give_back, managed.deleter, address).atexit = False
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
    """Return a capsule for an array that is packed in C order; `owner` lives until whoever opens it lets go."""
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


def _give_back(deleter: int | None, address: int) -> None:
    if deleter:
        _call_deleter(deleter)(address)


def _shared_by(managed: _Plain | _Versioned) -> SharedArray:
    read_only = False
    if isinstance(managed, _Versioned):
        if managed.major != _MAJOR:
            raise BufferError(f"it speaks DLPack {managed.major}.{managed.minor}")
        read_only = bool(managed.flags & _READ_ONLY)
    tensor = managed.tensor
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise TypeError(f"it holds a type that numpy has not (DLPack code {tensor.code}, {tensor.bits} bits)")
    dtype, shape = np.dtype(f"{kind}{tensor.bits // 8}"), tuple(tensor.shape[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    strides = _strides(tensor, shape, dtype.itemsize)
    return SharedArray(address, shape, dtype, strides, read_only, (tensor.device_type, tensor.device_id))


def _strides(tensor: _Tensor, shape: tuple[int, ...], itemsize: int) -> tuple[int, ...] | None:
    if not tensor.strides:
        return None
    strides, packed, expected = tuple(tensor.strides[: tensor.ndim]), True, 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        packed = packed and (size == 1 or stride == expected)  # of one element any stride will do
        expected *= size
    return None if packed else tuple(stride * itemsize for stride in strides)


_lent: Final[dict[int, tuple[Any, ...]]] = {}  # what capsules point to, by address, until they are done with


def _let_go(address: int) -> None:
    _lent.pop(address, None)


def _destroy(capsule: int) -> None:
    """Let go of an array whose capsule nobody opened."""
    for name in _NAMES.values():
        if _dying_is_valid(capsule, name):
            _lent.pop(_dying_pointer(capsule, name), None)


_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DELETER: Final = _CALLBACK(_let_go)
_DESTRUCTOR: Final = _CALLBACK(_destroy)

"""Checkpoints read without PyTorch: the tensors of `.safetensors` files and of zipped `.pth` files as NumPy arrays.

A `.pth` file is a zip with a pickle, `data.pkl`, and the bytes of each storage, `data/KEY`. The pickle is read with the
few names below; any other is refused before it is imported, so that no code of the file runs. What PyTorch alone
understands (pickles without a zip, sparse and quantized tensors) needs PyTorch.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

_SYSTEMS: Final = ("Posix", "Windows", "PurePosix", "PureWindows")
NUMBERS: Final = "?bhilqBHILQefd"
"""NumPy's type codes of booleans, integers and floats."""

TEXT: Final = "U"
"""NumPy's type code of text: class names beside the weights."""

DATES: Final = (dt.date, dt.datetime, dt.timedelta)

_STORAGES: Final = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_SAFETENSORS: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


class NeedsTorchError(ValueError):
    """The file holds `what`, which only PyTorch reads."""

    def __init__(self, what: str) -> None:
        super().__init__(f"it holds {what}")
        self.what = what


class ForbiddenNameError(ValueError):
    """The pickle asks for `name`, which is not imported."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it needs {name}")
        self.name = name


def array_of(tensor: Tensor | Array) -> Array:
    """Return the numbers of a dense tensor, which are shared where they lie in one piece on the CPU."""
    if isinstance(tensor, np.ndarray):
        return tensor
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array


def safetensors_arrays(data: bytes, header: Mapping[str, Any], start: int) -> dict[str, Array]:
    """Return the tensors by name, read-only, that the checked `header` describes in the bytes from `start` on."""
    arrays = {}
    for name, entry in header.items():
        shape, (begin, _) = tuple(entry["shape"]), entry["data_offsets"]
        kind = _dtype(_SAFETENSORS[entry["dtype"]])
        arrays[name] = np.frombuffer(data, kind, math.prod(shape), start + begin).reshape(shape)
    return arrays


def zip_content(data: bytes) -> object:
    """Return what the pickle in a zipped `.pth` file holds: containers, numbers, text, and arrays for tensors.

    Raises:
        NeedsTorchError: if it holds tensors of a kind that only PyTorch knows.
        ForbiddenNameError: if it asks for anything that is not a tensor, an array, a number, a date, a path or a
            container.
        Exception: of any kind, if the file is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        folder = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise NeedsTorchError("big-endian numbers")
        return _Unpickler(archive, folder).load()


class _Storage:
    """The class of a storage in a pickle, which stands for the type of its numbers."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _NumberType:
    """NumPy's `dtype` in a pickle: its name alone, since its own state is not read."""

    def __init__(self, name: str, *_: object) -> None:
        self.kind = np.dtype(name)
        if self.kind.char not in NUMBERS + TEXT:
            raise ForbiddenNameError(f"NumPy's type {name}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] == ">":
            raise NeedsTorchError("big-endian numbers")


class _FilledArray(np.ndarray[Any, Any]):
    """An array of NumPy in a pickle, whose shape, type and bytes follow."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, is_fortran, data = state
        super().__setstate__((version, shape, kind.kind, is_fortran, data))


class _Unpickler(pickle.Unpickler):
    """Reads `data.pkl` of an archive, and each storage once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Array] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return what stands for a name of the pickle."""
        name = f"{module_name}.{global_name}"
        if name in _BUILT:
            return _BUILT[name]
        if module_name == "torch" and global_name in _STORAGES:
            return _Storage(_STORAGES[global_name])
        raise NeedsTorchError(name) if module_name.partition(".")[0] == "torch" else ForbiddenNameError(name)

    def persistent_load(self, pid: Any, /) -> Array:
        """Return the numbers of a storage: ("storage", its class, its key, its device, how many)."""
        _, storage, key, _, count = pid
        if key not in self._storages:
            data = self._archive.read(f"{self._folder}data/{key}")
            self._storages[key] = np.frombuffer(data, _dtype(storage.kind))
        if len(self._storages[key]) != count:
            raise ValueError(f"storage {key} does not hold {count} numbers")
        return self._storages[key]


def _dtype(name: str) -> np.dtype[Any]:
    """The NumPy type called `name`; those that NumPy lacks come with the onnx package."""
    if not hasattr(np, name):
        import ml_dtypes

        kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return kind
    return np.dtype(name).newbyteorder("<")


def _tensor(storage: Array, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Array:
    """A view of `storage`, as `torch._utils._rebuild_tensor_v2` makes it, which stays inside."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor has sizes that are not whole numbers")
    reach = sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1 if 0 not in size else 0
    if offset + reach > len(storage):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides, writeable=False)


def _parameter(tensor: Array, *_: object) -> Array:
    return tensor


def number_of(kind: np.dtype[Any], data: bytes) -> np.generic:
    """Return one number; NumPy's `scalar`, which this replaces in pickles, would build objects and records too."""
    if kind.char not in NUMBERS or len(data) != kind.itemsize:
        raise ValueError(f"{len(data)} bytes are not one {kind}")
    number: np.generic = np.frombuffer(data, kind)[0]
    return number


def _number(kind: _NumberType, data: bytes) -> np.generic:
    return number_of(kind.kind, data)


def unfilled_array(*_: object) -> Array:
    """Return what NumPy's `_reconstruct`, which this replaces in pickles, gives: the state that follows fills it."""
    return np.empty(0)


def _unfilled_array(*_: object) -> Array:
    return np.empty(0).view(_FilledArray)


def emptied_dictionary(*_: object) -> dict[object, object]:
    """Return a dictionary for a `defaultdict`, whose entries follow; torch fills plain dictionaries only."""
    return {}


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 of pickle writes them."""
    if encoding != "latin1":
        raise ForbiddenNameError(f"_codecs.encode to {encoding}")
    return text.encode(encoding)


def path_text(*parts: str) -> str:
    """Return a path as text, for the paths of any system, which training code leaves among its settings."""
    return "/".join(map(str, parts))


PATHS: Final = tuple(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in _SYSTEMS)
SCALARS: Final = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
ARRAYS: Final = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
"""What pickles call numbers and arrays of NumPy: new files, old files."""

DEFAULT_DICTIONARY: Final = "collections.defaultdict"

_BUILT: Final[Mapping[str, Callable[..., Any]]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
    "argparse.Namespace": argparse.Namespace,
    DEFAULT_DICTIONARY: emptied_dictionary,
    **{
        f"{module}.{kind.__name__}": kind for kind in (list, dict, int, float) for module in ("builtins", "__builtin__")
    },
    **{f"datetime.{kind.__name__}": kind for kind in DATES},
    "numpy.dtype": _NumberType,
    "numpy.ndarray": np.ndarray,
    **dict.fromkeys(ARRAYS, _unfilled_array),
    **dict.fromkeys(SCALARS, _number),
    "_codecs.encode": _bytes,
    **dict.fromkeys(PATHS, path_text),
}
"""What a pickle may build, by the name that it states."""

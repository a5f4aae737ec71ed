"""Checkpoint files as bytes: untrusted ones are checked before they are parsed, and ours are written reproducibly.

A `.pth` file is a zip (before PyTorch 1.6, a bare pickle). `sources.arrays` makes NumPy arrays of a zip's tensors, and
refuses every object that is not a tensor, a number, text or a container. What it does not know (a bare pickle, sparse
and quantized tensors) is left to `torch.load(weights_only=True)`, which takes seconds to import. A few more kinds are
allowed, because training code leaves them beside the weights and building them does nothing: numbers and arrays of
NumPy, paths, dates, a `defaultdict`, and the namespace of a command line. A file is read once, so that what was checked
is what is loaded, and a zip is judged by its directory, before anything is inflated.

A safetensors file is 8 bytes of header length (little-endian), the header in JSON, and the bytes of the tensors, which
the offsets must cover once, without holes (https://huggingface.co/docs/safetensors). A duplicate key would let two
readers see two networks. The library's own writer orders the metadata at random, so that two files of the same weights
differ; ours are equal.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, is_checkpoint_name, os_errors_about, require_file
from densenet_deploy.errors import CheckpointError, MissingPackageError
from densenet_deploy.packages import is_installed
from densenet_deploy.sources.arrays import (
    ARRAYS,
    DATES,
    DEFAULT_DICTIONARY,
    NUMBERS,
    PATHS,
    SCALARS,
    TEXT,
    ForbiddenNameError,
    NeedsTorchError,
    emptied_dictionary,
    number_of,
    path_text,
    safetensors_arrays,
    unfilled_array,
    zip_content,
)

if TYPE_CHECKING:
    from torch import Tensor

INFLATION_LIMIT: Final = 4
"""How many times its own size a checkpoint may unpack to."""

LARGEST_FILE_BYTES: Final = 4 * 2**30
"""Of a checkpoint, which is read whole."""

SAVE_STATE_HINT: Final = "save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
UNPICKLE_HINT: Final = (
    "if you trust it, save its weights alone where that package is installed: "
    "model = torch.load(path, weights_only=False); torch.save(model.state_dict(), 'weights.pth')"
)
FETCH_AGAIN_HINT: Final = "download or save it again"

_PROGRAM_HINT: Final = "load it in Python: densenet_deploy.load(torch.export.load(path))"
_KERAS_HINT: Final = "convert it with tf2onnx and give the .onnx file"
_FOREIGN: Final = {
    **dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), _KERAS_HINT),
    ".pt2": _PROGRAM_HINT,
    **dict.fromkeys((".plan", ".trt"), "if it is a TensorRT engine, rename it to .engine"),
    ".caffemodel": "convert it to ONNX and give the .onnx file",
}
_GLOBAL: Final = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")

_LARGEST_HEADER_BYTES: Final = 100 * 10**6
_METADATA: Final = "__metadata__"
_LEGACY_START: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of a number of PyTorch's own
_TYPES_BY_WIDTH: Final = {
    1: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"),
    2: ("I16", "U16", "F16", "BF16"),
    4: ("I32", "U32", "F32"),
    8: ("I64", "U64", "F64"),
}
_WIDTHS: Final = {name: width for width, names in _TYPES_BY_WIDTH.items() for name in names}


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint holds: `content` (tensors, numbers, containers) and the `strings` of a safetensors header.

    Tensors are NumPy arrays, or PyTorch's in a file that only PyTorch reads.
    """

    path: Path
    size_bytes: int
    content: object
    strings: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path, largest_bytes: int = LARGEST_FILE_BYTES) -> CheckpointFile:
    """Read a `.safetensors` file, or one of PyTorch's: `.pth`, `.pt`, `.ckpt`, `.bin`, or any other name.

    Args:
        path: where it is.
        largest_bytes: the largest size that is read.

    Raises:
        InputError: if the file does not exist, or it is empty.
        CheckpointError: if it is damaged, too large, or holds objects other than tensors, numbers and containers.
    """
    if not is_checkpoint_name(path) and not (path.is_file() and _is_saved_by_torch(path)):
        fix = _FOREIGN.get(path.suffix.lower(), f"give one of {', '.join(CHECKPOINT_SUFFIXES)}")
        raise CheckpointError(path, f"has the suffix {path.suffix!r}", fix)
    data = _bytes_of(path, largest_bytes)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, data)
    if data.startswith(b"PK"):
        require_weights_zip(path, io.BytesIO(data))
    return CheckpointFile(path, len(data), _content(path, data, _load_tensors))


def is_left_to_torch(path: Path) -> bool:
    """Whether `read_checkpoint` leaves this file to PyTorch, which is not imported; errors as of that."""
    left = []
    _content(path, _bytes_of(path, LARGEST_FILE_BYTES), lambda *given: left.append(given))
    return bool(left)


def _is_saved_by_torch(path: Path) -> bool:
    """Whether the bytes are those of `torch.save`, old or new, whatever the file is called."""
    with os_errors_about(path), path.open("rb") as file:
        if file.read(len(_LEGACY_START)) == _LEGACY_START:
            return True
        try:
            return any(name.endswith("/data.pkl") for name in zipfile.ZipFile(file).namelist())
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return False


def require_weights_zip(path: Path, file: BinaryIO) -> None:
    """Check the zip in `file`, which `path` names in errors, by its directory; PyTorch is not needed.

    Raises:
        CheckpointError: if it is damaged, would unpack to far more than it is, or holds a program.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise CheckpointError(path, f"is a damaged or truncated zip ({exc})", FETCH_AGAIN_HINT) from exc
    declared = sum(entry.file_size for entry in entries)
    if declared > INFLATION_LIMIT * size_bytes:
        why = f"would unpack to {declared} bytes, over {INFLATION_LIMIT} times its {size_bytes}"
        raise CheckpointError(path, why, "do not use it; get the checkpoint from its author")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        fix = "load it in Python: densenet_deploy.load(torch.jit.load(path)), or save its state_dict()"
        raise CheckpointError(path, "is a TorchScript program, not weights", fix)
    if any(entry.filename.endswith("/archive_format") for entry in entries):
        raise CheckpointError(path, "is a program of torch.export, not weights", _PROGRAM_HINT)


def checked_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file's bytes, after checking that the tensors cover the data exactly.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    header, end = _header(data)
    strings = header.pop(_METADATA, {})
    if not isinstance(strings, dict) or not all(isinstance(text, str) for text in strings.values()):
        raise ValueError("its metadata are not pairs of strings")
    spans = sorted((*_span(name, entry), name) for name, entry in header.items())
    expected = 0
    for begin, stop, name in spans:
        if begin != expected:
            raise ValueError(f"tensor {name} {'overlaps another' if begin < expected else 'leaves a hole before it'}")
        expected = stop
    if expected != len(data) - end:
        raise ValueError(f"its tensors need {expected} bytes, but it holds {len(data) - end}")
    return strings


def float32_bytes(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> bytes:
    """Return a safetensors file: `tensors` as float32 and `strings` as metadata, both in the order of their names."""
    header: dict[str, object] = {_METADATA: dict(sorted(strings.items()))}
    blobs: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        blobs.append(tensors[name].detach().cpu().float().contiguous().numpy().tobytes())
        begin, end = end, end + len(blobs[-1])
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    padded = text.ljust(math.ceil(len(text) / 8) * 8)
    return b"".join([len(padded).to_bytes(8, "little"), padded, *blobs])


def _bytes_of(path: Path, largest_bytes: int) -> bytes:
    require_file(path)
    with os_errors_about(path):
        if path.stat().st_size > largest_bytes:
            raise CheckpointError(path, f"is larger than {largest_bytes} bytes", SAVE_STATE_HINT)
        return path.read_bytes()


def _read_safetensors(path: Path, data: bytes) -> CheckpointFile:
    try:
        strings = checked_metadata(data)
    except ValueError as exc:
        raise CheckpointError(path, f"is not a valid safetensors file: {exc}", FETCH_AGAIN_HINT) from exc
    header, start = _header(data)
    header.pop(_METADATA, None)
    return CheckpointFile(path, len(data), safetensors_arrays(data, header, start), strings)


def _content(path: Path, data: bytes, load_tensors: Callable[[Path, bytes], object]) -> object:
    """Read a zip, or leave to PyTorch what only that reads; another exception comes from damaged or hostile bytes."""
    has_torch = is_installed("torch")
    if not data.startswith(b"PK"):
        if not has_torch:
            raise MissingPackageError.of("torch", "export")
        return load_tensors(path, data)
    try:
        return zip_content(data)
    except NeedsTorchError as exc:
        if has_torch:
            return load_tensors(path, data)
        fix = "install PyTorch to read it: pip install 'densenet-deploy[export]'"
        raise CheckpointError(path, f"holds {exc.what}, which only PyTorch reads", fix) from exc
    except ForbiddenNameError as exc:
        raise _pickle_error(path, exc.name) from exc
    except Exception as exc:
        raise CheckpointError(path, f"is not a PyTorch checkpoint ({type(exc).__name__})", FETCH_AGAIN_HINT) from exc


def _pickle_error(path: Path, name: str) -> CheckpointError:
    return CheckpointError(path, f"is a pickle that needs {name}, and pickled code is never run", UNPICKLE_HINT)


def _load_tensors(path: Path, data: bytes) -> object:
    """Unpickle tensors and containers; any exception here comes from damaged or hostile bytes."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats and sparse tensors: we check what torch returns
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:
        if match := _GLOBAL.search(str(exc)):
            raise _pickle_error(path, match[1]) from exc
        raise CheckpointError(path, f"is not a PyTorch checkpoint ({type(exc).__name__})", FETCH_AGAIN_HINT) from exc


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickle may build besides tensors."""
    kinds = [type(np.dtype(letter)) for letter in NUMBERS + TEXT]
    numbers = [(number_of, name) for name in SCALARS]
    arrays = [(unfilled_array, name) for name in ARRAYS]
    paths = [(path_text, name) for name in PATHS]
    plain = [argparse.Namespace, *DATES, np.dtype, np.ndarray]
    history = (emptied_dictionary, DEFAULT_DICTIONARY)
    return [*plain, history, list, dict, int, float, *kinds, *numbers, *arrays, *paths]


def _header(data: bytes) -> tuple[dict[str, object], int]:
    """(parsed header, where the tensors begin)."""
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _LARGEST_HEADER_BYTES):
        raise ValueError(f"its header claims {length} bytes")
    if data[8:9] != b"{":
        raise ValueError("its header is not a JSON object")
    try:
        header: dict[str, object] = json.loads(data[8 : 8 + length], object_pairs_hook=_without_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise ValueError("its header is not JSON") from exc
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header holds a key twice")
    return table


def _span(name: str, entry: object) -> tuple[int, int]:
    """(begin, end) of a tensor's bytes, which must be as many as its shape and type need."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets")
    shape, offsets = _sizes(name, entry["shape"]), _sizes(name, entry["data_offsets"])
    width = _WIDTHS.get(str(entry["dtype"]))
    if width is None:
        raise ValueError(f"tensor {name} has the unknown type {entry['dtype']}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * width:
        raise ValueError(f"tensor {name} of shape {shape} does not fit the offsets {offsets}")
    return offsets[0], offsets[1]


def _sizes(name: str, value: object) -> list[int]:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise ValueError(f"tensor {name} has sizes that are not whole numbers")
    return value

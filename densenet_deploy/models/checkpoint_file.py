"""Untrusted bytes to tensors: a checkpoint is looked at before it is parsed, and a pickle in it is never executed.

A `.pth` file is a zip (or, before PyTorch 1.6, a bare pickle) read through `torch.load(weights_only=True)`, which
builds tensors and refuses every other object. Two are let through besides, because training code leaves them beside the
weights and building them does nothing: numbers of numpy, and the namespace of a command line. The file is read once, so
that what was checked is what is loaded.
"""

from __future__ import annotations

import argparse
import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from densenet_deploy.artifacts import CHECKPOINT_SUFFIXES, os_errors_about, require_file
from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.checkpoint_zip import FETCH_AGAIN, SAVE_STATE, require_weights_zip
from densenet_deploy.models.safetensors_file import checked_metadata

_LARGEST_FILE_BYTES: Final = 4 * 2**30
_GLOBAL: Final = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_NUMBERS: Final = "?bhilqBHILQefd"  # numpy's letters for truth values, integers and floats


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint holds: `content` (tensors, numbers, containers), and the `strings` of a safetensors header."""

    path: Path
    size_bytes: int
    content: object
    strings: Mapping[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a `.safetensors` file, or one of PyTorch's: `.pth`, `.pt`, `.ckpt` or `.bin`.

    Raises:
        InputError: if there is no such file, or it is empty.
        CheckpointError: if it is damaged, is too large, or holds other objects than tensors, numbers and containers.
    """
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise CheckpointError(path, f"has the suffix {path.suffix!r}", f"give one of {', '.join(CHECKPOINT_SUFFIXES)}")
    data = _bytes_of(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, data)
    if data.startswith(b"PK"):
        require_weights_zip(path, io.BytesIO(data))
    return CheckpointFile(path, len(data), _load_tensors(path, data))


def _bytes_of(path: Path) -> bytes:
    require_file(path)
    with os_errors_about(path):
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise CheckpointError(path, f"is larger than {_LARGEST_FILE_BYTES} bytes", SAVE_STATE)
        return path.read_bytes()


def _read_safetensors(path: Path, data: bytes) -> CheckpointFile:
    import safetensors.torch

    try:
        strings = checked_metadata(data)
        tensors = safetensors.torch.load(data)
    except (ValueError, KeyError, safetensors.SafetensorError) as exc:
        raise CheckpointError(path, f"is no whole safetensors file: {exc}", FETCH_AGAIN) from exc
    return CheckpointFile(path, len(data), tensors, strings)


def _load_tensors(path: Path, data: bytes) -> object:
    """Unpickle tensors and containers; any exception here comes from damaged or hostile bytes."""
    try:
        with warnings.catch_warnings():
            # torch comments on old formats and sparse tensors; what it returns is judged here, not by its remarks.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:
        if match := _GLOBAL.search(str(exc)):
            why = f"is a pickle that needs {match[1]}, and pickled code is never run"
            raise CheckpointError(path, why, SAVE_STATE) from exc
        raise CheckpointError(path, f"is no PyTorch checkpoint ({type(exc).__name__})", FETCH_AGAIN) from exc


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What a pickle may build besides tensors."""
    kinds = [type(np.dtype(letter)) for letter in _NUMBERS]
    numbers = [(_number, f"numpy.{module}.multiarray.scalar") for module in ("_core", "core")]  # new files, old files
    return [argparse.Namespace, np.dtype, *kinds, *numbers]


def _number(kind: np.dtype[Any], data: bytes) -> np.generic:
    """Stand in for numpy's `scalar`, which would make objects and records too."""
    if kind.char not in _NUMBERS or len(data) != kind.itemsize:
        raise ValueError(f"{len(data)} bytes are no {kind}")
    number: np.generic = np.frombuffer(data, kind)[0]
    return number

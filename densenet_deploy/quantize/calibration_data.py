"""Calibration data: a folder of images, an array file, or arrays from anywhere, as a stream of samples (1, 3, S, S).

Array files are read sample by sample, not mapped: the pages of a mapped file would count as this process's memory, and
members of an `.npz` cannot be mapped at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from densenet_deploy.artifacts import os_errors_about, require_file, sha256_of
from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.runtime.feeds import Array, value_limit
from densenet_deploy.runtime.image_folders import ReadableImages, find_images
from densenet_deploy.runtime.preprocess import prepare

DEFAULT_SAMPLES: Final = 512
ARRAY_SUFFIXES: Final = (".npy", ".npz")
_DAMAGE: Final = (  # a header is Python's text for a dict, and is read as that
    *(ValueError, EOFError, NotImplementedError, RuntimeError),
    *(SyntaxError, TypeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class CalibrationData(ABC):
    """Samples (1, 3, S, S) float32; each `iter` begins again, unless the source is itself an iterator."""

    @property
    def origin(self) -> object:
        """Where they come from, as errors name it."""
        return "calibration"

    @abstractmethod
    def __iter__(self) -> Iterator[Array]: ...

    @abstractmethod
    def digests(self) -> dict[str, str] | None:
        """Return the SHA-256 of every file that is read, by name, for a cache key; None if the source has no files."""


def open_calibration_data(
    source: Path | Iterable[Array], preprocessing: Preprocessing, samples: int = DEFAULT_SAMPLES, seed: int = 0
) -> CalibrationData:
    """Open a folder, an `.npy` or `.npz` file, or an iterable of arrays (N, 3, S, S).

    Args:
        source: images directly inside the folder or in class folders; arrays are float32, already normalized.
        preprocessing: of the model; arrays must have its size.
        samples: how many to take: a subset drawn by `seed`; all if there are fewer. Of an iterable, the first.
        seed: of the subset, and of the order in which images come: folders are sorted by class, and whoever takes
            the first few should get a fair sample. Arrays stay in their order.

    Raises:
        DataError: if there are no images, or the array is not float32 (N, 3, S, S) of finite, normalized values; its
            values are looked at while iterating.
        InputError: if there is no such file.
    """
    require_range("samples", samples, 1, 2**31)
    if not isinstance(source, Path):
        return ArrayStream(source, preprocessing, samples)
    if source.suffix.lower() in ARRAY_SUFFIXES and not source.is_dir():
        return ArrayFile.open(source, preprocessing, samples, seed)
    if source.is_file():
        raise DataError(source, "is no calibration data", f"give a folder of images, or {' or '.join(ARRAY_SUFFIXES)}")
    paths = find_images(source)
    order = np.random.default_rng(seed).permutation(len(paths))
    return ImageFolder(source, tuple(paths[index] for index in order[:samples]), preprocessing)


@dataclass(frozen=True)
class ImageFolder(CalibrationData):
    """Images `paths` inside `folder`, prepared as the model wants them."""

    folder: Path
    paths: tuple[Path, ...]
    preprocessing: Preprocessing

    @property
    def origin(self) -> Path:
        return self.folder

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Array]:
        return (prepare(image, self.preprocessing)[None] for _, image in ReadableImages(self.paths))

    def digests(self) -> dict[str, str]:
        return {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in self.paths}


@dataclass(frozen=True)
class ArrayFile(CalibrationData):
    """The samples `indices`, ascending, of the array in an `.npy` or `.npz` file."""

    path: Path
    indices: tuple[int, ...]
    preprocessing: Preprocessing

    @classmethod
    def open(cls, path: Path, preprocessing: Preprocessing, samples: int, seed: int) -> ArrayFile:
        """Read the header and choose the samples.

        Raises:
            DataError: if the file does not hold one float32 array (N, 3, S, S).
        """
        require_file(path)
        with _opened_array(path) as (file, size):
            count = _read_header(file, size, path, preprocessing)
        return cls(path, _subset(count, samples, seed), preprocessing)

    @property
    def origin(self) -> Path:
        return self.path

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Array]:
        shape = (1, 3, self.preprocessing.image_size, self.preprocessing.image_size)
        sample_bytes = 4 * math.prod(shape)
        with _opened_array(self.path) as (file, size):
            _read_header(file, size, self.path, self.preprocessing)
            first = file.tell()
            for index in self.indices:
                file.seek(first + index * sample_bytes)
                sample = np.frombuffer(file.read(sample_bytes), np.float32).reshape(shape)
                yield _checked(sample, f"sample {index} of {self.path}", self.preprocessing)

    def digests(self) -> dict[str, str]:
        chosen = hashlib.sha256(repr(self.indices).encode()).hexdigest()
        return {"array": sha256_of(self.path), "chosen samples": chosen}


@dataclass(frozen=True)
class ArrayStream(CalibrationData):
    """The first `samples` of arrays (N, 3, S, S) from anywhere."""

    source: Iterable[Array]
    preprocessing: Preprocessing
    samples: int

    def __iter__(self) -> Iterator[Array]:
        places = ((number, array) for number, array in enumerate(self.source))
        every = (part for number, array in places for part in _split(array, f"array {number}", self.preprocessing))
        return itertools.islice(every, self.samples)

    def digests(self) -> None:
        return None


def _subset(count: int, samples: int, seed: int) -> tuple[int, ...]:
    if samples >= count:
        return tuple(range(count))
    return tuple(sorted(np.random.default_rng(seed).choice(count, samples, replace=False).tolist()))


@contextlib.contextmanager
def _opened_array(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Give the `.npy` file, or the one member of the `.npz` file, and its size in bytes; damage becomes a DataError."""
    with os_errors_about(path):
        try:
            if path.suffix.lower() == ".npy":
                with path.open("rb") as file:
                    yield file, path.stat().st_size
                return
            with zipfile.ZipFile(path) as archive:
                member = _only_member(archive, path)
                with archive.open(member) as file:
                    yield file, member.file_size
        except _DAMAGE as exc:
            raise DataError(path, f"cannot be read ({exc})", "save it again with numpy.save or numpy.savez") from exc


def _only_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = archive.infolist()
    if len(members) != 1:
        names = ", ".join(member.filename.removesuffix(".npy") for member in members) or "none"
        raise DataError(path, f"holds {len(members)} arrays ({names})", "save the inputs alone")
    return members[0]


def _read_header(file: IO[bytes], size: int, path: Path, preprocessing: Preprocessing) -> int:
    """Read past the header and return the number of samples."""
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran_order, dtype = read(file)
    _require_samples(shape, dtype, path, preprocessing)
    if is_fortran_order and shape[0] > 1:
        raise DataError(path, "is in Fortran order", "save numpy.ascontiguousarray(array)")
    if size - file.tell() < 4 * math.prod(shape):
        raise DataError(path, "is shorter than its header says", "make or download it again")
    return shape[0]


def _require_samples(shape: tuple[int, ...], dtype: np.dtype[Any], name: object, preprocessing: Preprocessing) -> None:
    wanted = (3, preprocessing.image_size, preprocessing.image_size)
    if dtype != np.float32 or len(shape) != 4 or shape[1:] != wanted or shape[0] == 0:
        why = f"is {shape} {dtype}, the model takes float32 (N, {', '.join(map(str, wanted))})"
        raise DataError(name, why, "prepare images with densenet_deploy.runtime.preprocess, or give their folder")


def _split(array: Array, name: str, preprocessing: Preprocessing) -> Iterator[Array]:
    if not isinstance(array, np.ndarray):
        raise DataError(name, f"is a {type(array).__name__}", "give numpy arrays")
    _require_samples(array.shape, array.dtype, name, preprocessing)
    return (_checked(sample[None], name, preprocessing) for sample in array)


def _checked(sample: Array, name: str, preprocessing: Preprocessing) -> Array:
    limit = value_limit(preprocessing)
    low, high = sample.min(), sample.max()
    if -limit <= low and high <= limit:  # False for NaN as well
        return sample
    if not np.isfinite(sample).all():
        raise DataError(name, "holds NaN or Inf", "remove it")
    why = f"reaches from {low:.4g} to {high:.4g}, which no normalized image does"
    raise DataError(name, why, "prepare images with densenet_deploy.runtime.preprocess, or give their folder")

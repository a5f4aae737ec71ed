"""Calibration data: a folder of images, an array or its file, or images and batches from anywhere.

Each becomes a stream of samples (1, C, H, W), prepared for the model. Array files are read sample by sample, not
mapped: the pages of a mapped file would count as this process's memory, and members of an `.npz` cannot be mapped at
all.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from PIL import Image

from densenet_deploy.artifacts import StrPath, os_errors_about, require_file, sha256_of
from densenet_deploy.errors import DataError, InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.quantization.observers.minmax import MinMaxObserver
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.runtime.feeds import Array, as_array, value_limit
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.runtime.images import LoadedImage, load_image
from densenet_deploy.runtime.preprocess import prepare

DEFAULT_SAMPLES: Final = 512
ARRAY_SUFFIXES: Final = (".npy", ".npz")
_FIX: Final = "give images, or prepare arrays with densenet_deploy.runtime.preprocess"
_DAMAGE: Final = (  # a header is Python's text for a dict, and is read as that
    *(ValueError, EOFError, NotImplementedError, RuntimeError),
    *(SyntaxError, TypeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


class CalibrationData(ABC):
    """Samples (1, C, H, W) float32 that can be read more than once.

    Attributes:
        preprocessing: how images are prepared.
        samples: how many were asked for; there may be fewer.
    """

    preprocessing: Preprocessing
    samples: int

    @property
    def origin(self) -> object:
        """Where they come from, as errors name it."""
        return "calibration"

    @property
    @abstractmethod
    def count(self) -> int:
        """How many samples there are; of an iterable, how many were read so far in one pass."""

    @abstractmethod
    def __iter__(self) -> Iterator[Array]: ...

    @abstractmethod
    def digests(self) -> dict[str, str] | None:
        """Return the SHA-256 of all that is read, by name, for a cache key; None if the source cannot be identified."""

    def extremes(self) -> ChannelRanges | None:
        """Return the smallest and the largest value of each channel of arrays of inputs, after the data were read.

        Images, which are prepared as the model takes them, give None.
        """
        return None

    def input_range(self) -> ChannelRanges:
        """Return the range of inputs per channel, after the data were read: of images, what the preprocessing allows.

        Arrays of inputs have their own range, with the headroom of the observer `minmax`.
        """
        low, high = self.preprocessing.value_range
        channels = self.preprocessing.shape[0]
        return ChannelRanges(np.full(channels, low, np.float32), np.full(channels, high, np.float32))


def open_calibration_data(
    source: StrPath | Iterable[Any],
    preprocessing: Preprocessing,
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    *,
    check_values: bool = True,
) -> CalibrationData:
    """Open a folder, an `.npy` or `.npz` file, an array, or an iterable of images or batches.

    >>> data = open_calibration_data(DataLoader(dataset, batch_size=32), preprocessing)     # doctest: +SKIP

    Args:
        source: a folder with images directly inside or in class folders; a file or an array of inputs (N, C, H, W),
            float32 and already normalized; or an iterable, of which each item is such a batch or one input (C, H, W),
            a uint8 image (H, W, C) or batch (N, H, W, C), without C where the model takes one channel, a PIL image, a
            path, a torch tensor of these kinds, a tuple or list that begins with one of these, or a dict with one.
        preprocessing: of the model. Images are prepared with it; arrays must have its size.
        samples: how many to take: a subset drawn by `seed`; all if there are fewer. Of an iterable, the first. An
            iterator, which can be read only once, is kept in memory as far as it was read.
        seed: of the subset, and of the order in which images come: folders are sorted by class, and a reader of the
            first few should get a fair sample. Arrays keep their order.
        check_values: refuse arrays far beyond normalized images (0-255 pixels, say). False where mean and std are not
            known: then only NaN and Inf are refused.

    Raises:
        DataError: if there are no images, or an array is not one of finite, normalized inputs; items and values are
            checked while iterating.
        InputError: if the file does not exist.
    """
    require_range("samples", samples, 1, 2**31)
    limit = value_limit(preprocessing if check_values else None)
    if hasattr(source, "__array__"):
        return ArrayData.of(as_array("calibration", source), preprocessing, samples, seed, limit)
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, (bytes, Mapping)) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
            raise DataError(
                f"a {type(source).__name__}", "is not calibration data", "give a folder, an array, or images"
            )
        return Stream(source, preprocessing, samples, limit)
    path = Path(source)
    if path.suffix.lower() in ARRAY_SUFFIXES and not path.is_dir():
        return ArrayFile.open(path, preprocessing, samples, seed, limit)
    if path.is_file():
        raise DataError(path, "is not calibration data", f"give a folder of images, or {' or '.join(ARRAY_SUFFIXES)}")
    paths = find_images(path)
    order = np.random.default_rng(seed).permutation(len(paths))
    return ImageFolder(path, tuple(paths[index] for index in order[:samples]), preprocessing, samples)


@dataclass(frozen=True)
class ImageFolder(CalibrationData):
    """Images `paths` inside `folder`, prepared for the model."""

    folder: Path
    paths: tuple[Path, ...]
    preprocessing: Preprocessing
    samples: int

    @property
    def origin(self) -> Path:
        return self.folder

    @property
    def count(self) -> int:
        return len(self.paths)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Array]:
        for path in self.paths:
            try:
                image = load_image(path, self.preprocessing.shape[0])
            except InputError as exc:
                raise DataError(path, exc.why, "repair or remove it") from exc
            yield prepare(image, self.preprocessing)[None]

    def digests(self) -> dict[str, str]:
        return {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in self.paths}


@dataclass(frozen=True)
class ArrayFile(CalibrationData):
    """The samples `indices`, ascending, of the array in an `.npy` or `.npz` file."""

    path: Path
    indices: tuple[int, ...]
    preprocessing: Preprocessing
    samples: int
    limit: float

    @classmethod
    def open(cls, path: Path, preprocessing: Preprocessing, samples: int, seed: int, limit: float) -> ArrayFile:
        """Read the header and choose the samples.

        Raises:
            DataError: if the file does not hold one float32 array (N, C, H, W).
        """
        require_file(path)
        with _opened_array(path) as (file, size):
            count = _read_header(file, size, path, preprocessing)
        return cls(path, _subset(count, samples, seed), preprocessing, samples, limit)

    @property
    def origin(self) -> Path:
        return self.path

    @property
    def count(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Array]:
        shape = (1, *self.preprocessing.shape)
        sample_bytes = 4 * math.prod(shape)
        with _opened_array(self.path) as (file, size):
            _read_header(file, size, self.path, self.preprocessing)
            first = file.tell()
            for index in self.indices:
                file.seek(first + index * sample_bytes)
                sample = np.frombuffer(file.read(sample_bytes), np.float32).reshape(shape)
                yield _checked(sample, f"sample {index} of {self.path}", self.limit)

    def digests(self) -> dict[str, str]:
        chosen = hashlib.sha256(repr(self.indices).encode()).hexdigest()
        return {"array": sha256_of(self.path), "chosen samples": chosen}

    def extremes(self) -> ChannelRanges:
        return _observed(self).extremes()

    def input_range(self) -> ChannelRanges:
        return _observed(self).ranges()


@dataclass(frozen=True, eq=False)
class ArrayData(CalibrationData):
    """The samples `indices`, ascending, of an array in memory: float32 inputs or uint8 images."""

    array: Array
    indices: tuple[int, ...]
    preprocessing: Preprocessing
    samples: int
    limit: float

    @classmethod
    def of(cls, array: Array, preprocessing: Preprocessing, samples: int, seed: int, limit: float) -> ArrayData:
        """Choose the samples.

        Raises:
            DataError: if the array is neither float32 (N, C, H, W) nor uint8 pixels (see `open_calibration_data`).
        """
        pixels = _pixels_of(array, preprocessing)
        if pixels is not None:
            array = pixels
        else:
            array = array[None] if array.ndim == 3 else array
            _require_inputs(array.shape, array.dtype, "array", preprocessing)
        return cls(array, _subset(len(array), samples, seed), preprocessing, samples, limit)

    @property
    def count(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Array]:
        for index in self.indices:
            yield from _inputs_of(self.array[index : index + 1], f"sample {index}", self.preprocessing, self.limit)

    def digests(self) -> dict[str, str]:
        chosen = self.array[list(self.indices)]
        return {"array": hashlib.sha256(chosen.tobytes()).hexdigest(), "type": str(chosen.dtype)}

    def extremes(self) -> ChannelRanges | None:
        return None if self.array.dtype == np.uint8 else _observed(self).extremes()

    def input_range(self) -> ChannelRanges:
        return super().input_range() if self.array.dtype == np.uint8 else _observed(self).ranges()


@dataclass(eq=False)
class Stream(CalibrationData):
    """The first `samples` of an iterable; those of an iterator are kept once they were read.

    Its range is that of the arrays of inputs among its items, if there are any.
    """

    source: Iterable[Any]
    preprocessing: Preprocessing
    samples: int
    limit: float

    def __post_init__(self) -> None:
        self._is_iterator = isinstance(self.source, Iterator)
        self._kept: list[Array] = []
        self._rest = self._read()
        self._count = 0
        self._range: MinMaxObserver | None = None

    @property
    def count(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Array]:
        every = self._read_again() if self._is_iterator else self._read()
        for number, sample in enumerate(itertools.islice(every, self.samples), start=1):
            self._count = max(self._count, number)
            yield sample

    def digests(self) -> dict[str, str] | None:
        """Return the digest of all samples of an iterator, which reads them; None for other iterables."""
        if not self._is_iterator:
            return None
        every = hashlib.sha256()
        for sample in self:
            every.update(sample.tobytes())
        return {"samples": every.hexdigest()}

    def _read(self) -> Iterator[Array]:
        for number, item in enumerate(self.source):
            name = f"item {number}"
            image_or_batch = _unwrapped(item, name)
            is_input = hasattr(image_or_batch, "__array__") and as_array(name, image_or_batch).dtype != np.uint8
            for sample in _inputs_of(image_or_batch, name, self.preprocessing, self.limit):
                if is_input:
                    self._range = self._range or MinMaxObserver(sample.shape[1])
                    self._range.update(sample)
                yield sample

    def extremes(self) -> ChannelRanges | None:
        return None if self._range is None else self._range.extremes()

    def input_range(self) -> ChannelRanges:
        return super().input_range() if self._range is None else self._range.ranges()

    def _read_again(self) -> Iterator[Array]:
        for place in itertools.count():
            while len(self._kept) <= place:
                sample = next(self._rest, None)
                if sample is None:
                    return
                self._kept.append(sample)
            yield self._kept[place]


def _subset(count: int, samples: int, seed: int) -> tuple[int, ...]:
    return tuple(sorted(np.random.default_rng(seed).choice(count, min(samples, count), replace=False).tolist()))


@contextlib.contextmanager
def _opened_array(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open the `.npy` file, or the one member of the `.npz` file, and give its size; damage becomes a DataError."""
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


def image_size_of_inputs(source: object) -> tuple[int, int] | None:
    """Return height and width of the inputs (N, C, H, W) in an array or its file; None of any other calibration data.

    Raises:
        DataError: if the file cannot be read.
        InputError: if it does not exist.
    """
    if hasattr(source, "__array__"):
        shape, dtype = as_array("calibration", source).shape, as_array("calibration", source).dtype
    elif isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in ARRAY_SUFFIXES:
        with _opened_array(Path(source)) as (file, _):
            shape, _, dtype = _header_of(file)
    else:
        return None
    return (shape[2], shape[3]) if len(shape) == 4 and dtype == np.float32 else None


def _header_of(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read past the header and return shape, whether it is in Fortran order, and type."""
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran_order, dtype = read(file)
    return shape, is_fortran_order, dtype


def _read_header(file: IO[bytes], size: int, path: Path, preprocessing: Preprocessing) -> int:
    """Read past the header and return the number of samples."""
    shape, is_fortran_order, dtype = _header_of(file)
    _require_inputs(shape, dtype, path, preprocessing)
    if is_fortran_order:
        raise DataError(path, "is in Fortran order", "save numpy.ascontiguousarray(array)")
    if size - file.tell() < 4 * math.prod(shape):
        raise DataError(path, "is shorter than its header says", "make or download it again")
    return shape[0]


def _observed(samples: Iterable[Array]) -> MinMaxObserver:
    observer: MinMaxObserver | None = None
    for sample in samples:
        observer = observer or MinMaxObserver(sample.shape[1])
        observer.update(sample)
    assert observer is not None
    return observer


def _require_inputs(shape: tuple[int, ...], dtype: np.dtype[Any], name: object, preprocessing: Preprocessing) -> None:
    expected = preprocessing.shape
    if dtype != np.float32 or shape[1:] != expected or shape[0] == 0:
        why = f"is {shape} {dtype}, the model takes float32 (N, {', '.join(map(str, expected))})"
        raise DataError(name, why, _FIX)


# -- items of an iterable


def _inputs_of(item: object, name: str, preprocessing: Preprocessing, limit: float) -> Iterator[Array]:
    """Yield the samples (1, C, H, W) in one image or batch."""
    if isinstance(item, (str, os.PathLike, bytes, Image.Image, LoadedImage)):
        yield _prepared(item, name, preprocessing)
        return
    if not hasattr(item, "__array__"):
        raise DataError(name, f"is a {type(item).__name__}", "give images, paths, arrays or tensors")
    array = as_array(name, item)
    images = _pixels_of(array, preprocessing)
    if images is not None:
        yield from (_prepared(pixels, name, preprocessing) for pixels in images)
        return
    batch = array[None] if array.ndim == 3 else array
    _require_inputs(batch.shape, batch.dtype, name, preprocessing)
    for sample in batch:
        yield _checked(sample[None], name, limit)


def _unwrapped(item: object, name: str) -> object:
    """Return the image or batch in what a DataLoader gives: (batch, labels) or {"image": batch, ...}."""
    if isinstance(item, Mapping):
        found = [value for value in item.values() if _is_image_like(value)]
        if len(found) != 1:
            why = f"is a dict with {len(found)} images or batches ({', '.join(map(str, item)) or 'empty'})"
            raise DataError(name, why, "give the batch itself, or a dict with one")
        return found[0]
    if isinstance(item, (tuple, list)) and item:
        count = sum(_is_image_like(value) or _is_file(value) for value in item)
        if count > 1:  # only the first would be used
            why = f"is a {type(item).__name__} of {count} images or batches"
            raise DataError(name, why, "give one image or batch at a time, with or without its labels")
        return _unwrapped(item[0], name)
    return item


def _is_image_like(value: object) -> bool:
    return isinstance(value, (Image.Image, LoadedImage)) or len(getattr(value, "shape", ())) > 2


def _is_file(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and Path(value).is_file()


def _pixels_of(array: Array, preprocessing: Preprocessing) -> Array | None:
    """Return the images (N, H, W, C) in an array of one or several, or None if it holds no pixels for the model.

    Gray ones may come without their channel: (H, W) or (N, H, W), the latter unless its last axis is the channel.
    """
    channels = preprocessing.shape[0]
    if channels == 1 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 1)):
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != channels or 0 in array.shape:
        return None
    return array[None] if array.ndim == 3 else array


def _prepared(image: Any, name: str, preprocessing: Preprocessing) -> Array:
    try:
        return prepare(load_image(image, preprocessing.shape[0]), preprocessing)[None]
    except InputError as exc:
        raise DataError(f"{name}: {exc.subject}", exc.why, exc.fix) from exc


def _checked(sample: Array, name: str, limit: float) -> Array:
    low, high = sample.min(), sample.max()
    if -limit <= low and high <= limit:  # False for NaN as well
        return sample
    if not np.isfinite(sample).all():
        raise DataError(name, "holds NaN or Inf", "remove it")
    raise DataError(name, f"ranges from {low:.4g} to {high:.4g}, beyond any normalized image", _FIX)

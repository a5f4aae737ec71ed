"""CIFAR-10 and CIFAR-100 as published: the Python and the binary version, as archives or unpacked.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". An image is 3072 bytes: 32x32 of red, then
green, then blue. The binary version puts one byte with the class before each image (CIFAR-100 two: the coarse class and
the fine one). The Python version pickles arrays and lists; nothing but those is unpickled here.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import cache_folder, os_errors_about
from densenet_deploy.errors import DataError
from densenet_deploy.training.options import CIFAR_NAMES

Bytes = npt.NDArray[np.uint8]

SIDE: Final = 32
"""Height and width of every image, in pixels."""

_IMAGE_BYTES: Final = 3 * SIDE**2
_NUMPY: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
_FIX: Final = "download the archive again"
_PLACES: Final = (Path(), Path("data"))


@dataclass(frozen=True)
class Version:
    """One form of one data set.

    Attributes:
        data: `cifar10` or `cifar100`.
        archive, folder: names of the archive and of the folder that it unpacks to.
        training, test: names of the files in it.
        names: the file with the names of the classes, and the key of those in a pickle.
        classes: how many there are; the key of their indices in a pickle.
        label_bytes: before each image of the binary version; 0 of pickles.
    """

    data: str
    archive: str
    folder: str
    training: tuple[str, ...]
    test: str
    names: tuple[str, str]
    classes: tuple[int, str]
    label_bytes: int = 0


_VERSIONS: Final = (
    Version(
        "cifar10",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        ("batches.meta", "label_names"),
        (10, "labels"),
    ),
    Version(
        "cifar10",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        ("batches.meta.txt", ""),
        (10, ""),
        1,
    ),
    Version(
        "cifar100",
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        ("train",),
        "test",
        ("meta", "fine_label_names"),
        (100, "fine_labels"),
    ),
    Version(
        "cifar100",
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        ("fine_label_names.txt", ""),
        (100, ""),
        2,
    ),
)


@dataclass(frozen=True)
class Cifar:
    """A data set: images (N, 32, 32, 3) uint8 with the class of each (N,), to train on and to test with."""

    name: str
    labels: tuple[str, ...]
    training: tuple[Bytes, npt.NDArray[np.int64]]
    test: tuple[Bytes, npt.NDArray[np.int64]]


def find_cifar(data: Path) -> Path | None:
    """Return the archive or folder that `data` is, names or holds; None if it is something else.

    `cifar10` and `cifar100` are looked for in the current folder, in `data/`, and in the cache of this package.

    Raises:
        DataError: if `data` is such a name, and the archive is in none of these places.
    """
    if str(data) in CIFAR_NAMES and not data.exists():
        places = (*_PLACES, cache_folder("data"))
        found = next((path for place in places if (path := _within(place, str(data))) is not None), None)
        if found is None:
            archives = " or ".join(version.archive for version in _VERSIONS if version.data == str(data))
            where = ", ".join(str(place) for place in places)
            raise DataError(data, f"is in none of the folders {where}", f"put {archives} into one of them")
        return found
    if _version_of(data) is not None:
        return data if data.exists() else None
    return _within(data)


def cifar_labels(path: Path) -> tuple[str, ...]:
    """Return the names of the classes in what `find_cifar` returned. Errors as `read_cifar`."""
    version = _known_version(path)
    return _labels(path, version, _files(path, version, version.names[:1])[version.names[0]])


def read_cifar(path: Path) -> Cifar:
    """Read an archive or a folder that `find_cifar` returned.

    Raises:
        DataError: if a file is missing or damaged, or a pickle holds something else than arrays and lists.
    """
    version = _known_version(path)
    files = _files(path, version, (*version.training, version.test, version.names[0]))
    labels = _labels(path, version, files[version.names[0]])
    training = [_images(path, version, name, files[name]) for name in version.training]
    joined = np.concatenate([images for images, _ in training]), np.concatenate([classes for _, classes in training])
    return Cifar(version.data, labels, joined, _images(path, version, version.test, files[version.test]))


def _known_version(path: Path) -> Version:
    version = _version_of(path)
    assert version is not None
    return version


def _files(path: Path, version: Version, names: Sequence[str]) -> dict[str, bytes]:
    with os_errors_about(path):
        return _files_in_folder(path, names) if path.is_dir() else _files_in_archive(path, version, names)


def _version_of(path: Path) -> Version | None:
    return next((version for version in _VERSIONS if path.name in (version.archive, version.folder)), None)


def _within(folder: Path, data: str | None = None) -> Path | None:
    names = [
        name for version in _VERSIONS if data in (None, version.data) for name in (version.archive, version.folder)
    ]
    return next((folder / name for name in names if (folder / name).exists()), None)


def _files_in_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(folder, f"has no file {missing[0]}", _FIX)
    return {name: (folder / name).read_bytes() for name in names}


def _files_in_archive(path: Path, version: Version, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if folder == version.folder and name in names and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise DataError(path, f"is a damaged archive ({exc})", _FIX) from exc
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(path, f"has no file {version.folder}/{missing[0]}", _FIX)
    return found


def _labels(path: Path, version: Version, data: bytes) -> tuple[str, ...]:
    name, key = version.names
    if version.label_bytes:
        labels = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        labels = [_text(label) for label in _entry(path, name, _unpickled(path, name, data), key)]
    if len(labels) != version.classes[0]:
        raise DataError(path, f"{name} names {len(labels)} classes, not {version.classes[0]}", _FIX)
    return tuple(labels)


def _images(path: Path, version: Version, name: str, data: bytes) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """The images (N, 32, 32, 3) and classes (N,) of one file."""
    if version.label_bytes:
        row = version.label_bytes + _IMAGE_BYTES
        if not data or len(data) % row:
            raise DataError(path, f"{name} has {len(data)} bytes, not a multiple of {row}", _FIX)
        rows = np.frombuffer(data, np.uint8).reshape(-1, row)
        pixels, classes = rows[:, version.label_bytes :], rows[:, version.label_bytes - 1].astype(np.int64)
    else:
        content = _unpickled(path, name, data)
        pixels = np.asarray(_entry(path, name, content, "data"))
        classes = np.asarray(_entry(path, name, content, version.classes[1]), np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (len(classes), _IMAGE_BYTES) or not len(classes):
            why = f"{name} holds {pixels.dtype} of {pixels.shape} for {len(classes)} classes"
            raise DataError(path, why, _FIX)
    if not 0 <= classes.min() <= classes.max() < version.classes[0]:
        raise DataError(path, f"{name} holds a class outside 0 to {version.classes[0] - 1}", _FIX)
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), classes


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays, lists, numbers and text, and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[str, Callable[..., Any]] = {"ndarray": np.ndarray, "dtype": np.dtype}
        if module == "numpy" and name in allowed:
            return allowed[name]
        if module in _NUMPY and name == "_reconstruct":
            return _reconstruct
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _encode
        raise pickle.UnpicklingError(f"it needs {module}.{name}")


def _reconstruct(kind: type, _shape: object, _dtype: object) -> Bytes:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it needs another array type")
    return np.empty((0,), np.uint8)  # its state is set next


def _encode(text: object, encoding: object = "latin1") -> bytes:
    return str(text).encode(str(encoding))


def _unpickled(path: Path, name: str, data: bytes) -> object:
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except Exception as exc:  # damaged or hostile bytes raise errors of any class
        raise DataError(path, f"{name} is not a pickle of arrays and lists ({exc})", _FIX) from exc


def _entry(path: Path, name: str, content: object, key: str) -> Any:
    if isinstance(content, dict):
        for spelled in (key, key.encode()):
            if spelled in content:
                return content[spelled]
    raise DataError(path, f"{name} has no entry {key}", _FIX)


def _text(label: object) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)

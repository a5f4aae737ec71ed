"""Folders of images: which files are images, the class of each, and their inputs prepared ahead of the model.

Images are found by suffix; whether a file really is one shows when it is read (`images.py`).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from densenet_deploy.artifacts import StrPath, os_errors_about
from densenet_deploy.errors import DataError, InputError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.preprocess import PreparedImage, read_input

IMAGE_SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm"))

T = TypeVar("T")
R = TypeVar("R")

ADD_FILES: Final = f"add {', '.join(sorted(IMAGE_SUFFIXES))} files"


@dataclass(frozen=True)
class LabelledImage:
    """The path of an image, and the index of its class among the model's outputs."""

    path: Path
    index: int


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read, and why."""

    path: Path
    error: InputError


def find_images(folder: StrPath) -> tuple[Path, ...]:
    """Return the images (by suffix) directly inside `folder` or inside its class folders, sorted by path.

    Raises:
        InputError: if the folder does not exist.
        DataError: if it holds none.
    """
    folder = Path(folder)
    with os_errors_about(folder):
        found = [path for place in (folder, *_class_folders(folder)) for path in _images_in(place)]
    if not found:
        raise DataError(folder, "holds no image, directly or in class folders", ADD_FILES)
    return tuple(sorted(found))


def find_labelled_images(folder: StrPath, labels: Sequence[str] | None = None) -> tuple[LabelledImage, ...]:
    """Return the images of a tree with one folder per class, `folder/cat/1.jpg`, sorted by path.

    If all folders are named after labels, the names determine the classes; there may be fewer folders than labels. If
    none is (ImageNet's `n01440764`), or there are no labels, the sorted folders are the classes in order, as in
    torchvision's ImageFolder ("10" comes before "2"), and there must be as many as labels. Anything in between is
    refused. Folders with names that start with a dot are skipped.

    Raises:
        InputError: if the folder does not exist.
        DataError: if there are no class folders, one is empty, or they do not match the labels.
    """
    folder = Path(folder)
    with os_errors_about(folder):
        classes = _class_folders(folder)
        if not classes:
            raise DataError(folder, "holds no class folders", "give a folder with one folder of images per class")
        indices = _class_indices(folder, [place.name for place in classes], labels)
        return tuple(
            LabelledImage(path, index)
            for place, index in zip(classes, indices, strict=True)
            for path in _images_of_class(place)
        )


class PreparedImages:
    """Iterate over the readable images of `paths` in order, as (path, input of the model).

    Threads decode and prepare them ahead of the caller: Pillow and NumPy release the interpreter meanwhile. Unreadable
    images are recorded in `bad`. Each iteration starts from the beginning, and ends its threads when it ends.

    >>> images = PreparedImages(find_images("photos"), classify.preprocessing, max_bad=None)      # doctest: +SKIP
    >>> predictions = {path: classify(image) for path, image in images}                           # doctest: +SKIP
    >>> [f"{bad.path}: {bad.error.why}" for bad in images.bad]                                    # doctest: +SKIP
    ['photos/cut.jpg: cannot be decoded (ends too early)']

    Args:
        paths: image files.
        preprocessing: how they are prepared.
        max_bad: how many may be unreadable; None allows any number.
        fast: see `read_input`.
        ahead: how many are prepared before they are asked for.
        threads: None means one per CPU that this process may use.

    Raises:
        DataError: while iterating, at the unreadable image that exceeds `max_bad`.
    """

    def __init__(
        self,
        paths: Iterable[StrPath],
        preprocessing: Preprocessing,
        *,
        max_bad: int | None = 0,
        fast: bool = False,
        ahead: int = 32,
        threads: int | None = None,
    ) -> None:
        self._paths = tuple(map(Path, paths))
        self._preprocessing, self._fast = preprocessing, fast
        self._max_bad = max_bad
        self._ahead = require_range("ahead", ahead, 1, 1_000_000)
        self._threads = require_range("decode-threads", usable_cpus() if threads is None else threads, 1, 1024)
        self.bad: list[BadImage] = []

    def __iter__(self) -> Iterator[tuple[Path, PreparedImage]]:
        self.bad.clear()
        read = functools.partial(read_input, preprocessing=self._preprocessing, fast=self._fast)
        with contextlib.closing(computed_ahead(read, self._paths, ahead=self._ahead, threads=self._threads)) as images:
            for path, result in images:
                yield from self._readable(path, result)

    def _readable(self, path: Path, result: Future[PreparedImage]) -> Iterator[tuple[Path, PreparedImage]]:
        try:
            image = result.result()
        except InputError as exc:
            record_bad(self.bad, BadImage(path, exc), self._max_bad)
        else:
            yield path, image


def computed_ahead(
    function: Callable[[T], R], items: Iterable[T], *, ahead: int, threads: int
) -> Generator[tuple[T, Future[R]]]:
    """Yield every item, in order, with what `function` returns or raises for it; threads compute `ahead` of the caller.

    They end when the generator does.
    """
    pool = ThreadPoolExecutor(threads, "decode")
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def record_bad(bad: list[BadImage], image: BadImage, max_bad: int | None) -> None:
    """Append `image` to `bad`.

    Raises:
        DataError: naming the first of them, if there are now more than `max_bad`.
    """
    bad.append(image)
    if max_bad is not None and len(bad) > max_bad:
        first = bad[0]
        why = f"{first.error.why} (unreadable images: {len(bad)}, allowed: {max_bad})"
        raise DataError(first.path, why, "repair or remove it, or raise --max-bad") from first.error


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def _images_of_class(folder: Path) -> list[Path]:
    images = _images_in(folder)
    if not images:
        raise DataError(folder, "is a class folder without images", f"{ADD_FILES}, or remove it")
    return images


def _class_indices(folder: Path, names: Sequence[str], labels: Sequence[str] | None) -> list[int]:
    if not labels:
        return list(range(len(names)))
    unknown = sorted(set(names) - set(labels))
    if not unknown:
        return _indices_by_name(folder, names, labels)
    if len(unknown) < len(names):
        near = difflib.get_close_matches(unknown[0], labels)
        fix = f"rename it to {near[0]!r}, or remove it" if near else "remove it"
        raise DataError(folder / unknown[0], "is not a label of the model, though other folders are", fix)
    if len(names) != len(labels):
        why = f"holds {len(names)} class folders, the model has {len(labels)} labels; the first folder is {names[0]!r}"
        raise DataError(folder, why, f"name the folders after the labels, such as {labels[0]!r}")
    return list(range(len(names)))


def _indices_by_name(folder: Path, names: Sequence[str], labels: Sequence[str]) -> list[int]:
    counts = Counter(labels)
    for name in names:
        if counts[name] > 1:
            raise DataError(folder / name, f"names {counts[name]} labels of the model", "make the labels distinct")
    return [labels.index(name) for name in names]

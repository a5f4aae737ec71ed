"""What to train on: images with the class of each, in folders or in CIFAR's archives, and what validates the result.

::

    DIR/cat/1.jpg, DIR/dog/2.jpg           class folders; a seeded tenth of each class is held out for validation
    DIR/train/cat/1.jpg, DIR/val/cat/9.jpg the same in two parts
    cifar-10-python.tar.gz                 an archive as published, or the folder that it unpacks to
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import DataError, InputError
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import BadImage, LabelledImage, find_images, find_labelled_images
from densenet_deploy.runtime.images import LoadedImage, load_image
from densenet_deploy.training.cifar import SIDE, cifar_labels, find_cifar, read_cifar

UNLABELLED: Final = -1
"""The class of an image that only a teacher judges."""

_HELD_OUT: Final = 10
"""One in so many images of a class is held out."""

_NAMED: Final = 3
_ON_TEST: Final = "validated on the published test images: the best epoch is chosen on them"


@dataclass(frozen=True, eq=False)
class Example:
    """An image, in a file or as uint8 (H, W, 3), and its class; `UNLABELLED` where that is not known."""

    image: Path | Array
    index: int

    def loaded(self, channels: int) -> LoadedImage:
        """Return the image in the channels of the model. Errors as `load_image`."""
        image = load_image(self.image, channels)
        if image.channels != channels:  # an array is taken as it is
            return load_image(image.pixels, channels)
        return image


@dataclass(frozen=True)
class TrainingData:
    """What to train on.

    Attributes:
        name: what it is called in reports and in the manifest.
        labels: names of the classes, in the order of the outputs.
        training, validation: examples; all of `validation` have a class.
        notes: what was assumed.
        bad: images that cannot be read, which are left out.
    """

    name: str
    labels: tuple[str, ...]
    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    bad: tuple[BadImage, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the examples: classes, and names and sizes of files, or pixels."""
        digest = hashlib.sha256("\0".join(self.labels).encode())
        for part in (self.training, self.validation):
            for example in part:
                digest.update(_identity(example.image) + f"\0{example.index}\0".encode())
        return digest.hexdigest()


def _identity(image: Path | Array) -> bytes:
    if isinstance(image, Path):
        return f"{image.parent.name}/{image.name}\0{image.stat().st_size}".encode()
    return image.tobytes()


def class_names(data: Path) -> tuple[str, ...]:
    """Return the names of the classes in `data`, in the order of CIFAR, or sorted as folders are.

    Raises:
        InputError: if the folder or archive does not exist.
        DataError: if it holds fewer than two classes.
    """
    archive = find_cifar(data)
    if archive is not None:
        return cifar_labels(archive)
    folder = _training_folder(data)
    with os_errors_about(folder):
        names = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    if not names:
        find_labelled_images(folder)  # says why not
    if len(names) == 1:
        why = f"holds a single class, {names[0]!r}"
        raise DataError(
            folder, why, "give two class folders or more; a network can't learn to tell one class from none"
        )
    return tuple(names)


def image_side(data: Path) -> int | None:
    """Return the side in pixels of the images of an archive, which all have the same size; None of folders."""
    return None if find_cifar(data) is None else SIDE


def read_data(
    data: Path, val: Path | None, labels: Sequence[str], *, seed: int, unlabelled: Path | None = None
) -> TrainingData:
    """Return what `data`, a folder or an archive of CIFAR's, holds.

    Args:
        data: see the top of this module.
        val: another folder to validate on.
        labels: the classes in the order of the outputs.
        seed: chooses the images that are held out where there is nothing to validate on.
        unlabelled: a folder of images for distillation, which need no classes.

    Raises:
        InputError: if the folder does not exist.
        DataError: if a class has no image, or the folders do not match the labels.
    """
    archive = find_cifar(data)
    found = _of_archive(archive, labels) if archive is not None else _of_folders(data, val, labels, seed)
    if archive is not None and val is not None:
        found = replace(found, validation=_labelled(val, labels), notes=())
    if unlabelled is None:
        return found
    more = tuple(Example(path, UNLABELLED) for path in find_images(unlabelled))
    note = f"{len(more)} unlabelled images of {unlabelled} are judged by the teacher alone"
    return replace(found, training=(*found.training, *more), notes=(*found.notes, note))


def _of_archive(archive: Path, labels: Sequence[str]) -> TrainingData:
    """Read CIFAR; `labels` order its classes if they are their names, and otherwise rename them."""
    cifar = read_cifar(archive)
    if len(labels) != len(cifar.labels):
        why = f"has {len(cifar.labels)} classes, and {len(labels)} labels were stated"
        raise DataError(archive, why, "state a label for each class, or none")
    is_ordered = sorted(labels) == sorted(cifar.labels)
    places = [labels.index(name) for name in cifar.labels] if is_ordered else list(range(len(labels)))
    training, test = (
        tuple(Example(image, places[int(index)]) for image, index in zip(*part, strict=True))
        for part in (cifar.training, cifar.test)
    )
    return TrainingData(cifar.name, tuple(labels), training, test, notes=(_ON_TEST,))


def _of_folders(data: Path, val: Path | None, labels: Sequence[str], seed: int) -> TrainingData:
    folder = _training_folder(data)
    examples = _labelled(folder, labels)
    counts = Counter(example.index for example in examples)
    empty = next((label for index, label in enumerate(labels) if not counts[index]), None)
    if empty is not None:
        raise DataError(folder, f"has no image of the class {empty!r}", "add some, or leave the label out")
    beside = data / "val"
    if val is None and folder != data and beside.is_dir():
        val = beside
    if val is not None:
        validation = _labelled(val, labels)
        missing = len(labels) - len({example.index for example in validation})
        notes = (f"{missing} of {len(labels)} classes have no validation image",) if missing else ()
        return TrainingData(data.resolve().name, tuple(labels), examples, validation, notes=notes)
    training, held_out = _held_out(examples, seed)
    if not held_out:
        why = "has too few images to hold some out for validation"
        raise DataError(folder, why, "give two images of a class or more, or --val DIR")
    note = f"no validation data: {len(held_out)} of {len(examples)} images, a tenth of each class, were held out"
    return TrainingData(data.resolve().name, tuple(labels), training, held_out, notes=(f"{note} (seed {seed})",))


def _training_folder(data: Path) -> Path:
    """Return the folder `train` in `data` if there is one with folders in it, else `data`."""
    inner = data / "train"
    with os_errors_about(data):
        has_classes = inner.is_dir() and any(place.is_dir() for place in inner.iterdir())
    return inner if has_classes else data


def _labelled(folder: Path, labels: Sequence[str]) -> tuple[Example, ...]:
    found: Sequence[LabelledImage] = find_labelled_images(folder, labels)
    return tuple(Example(image.path, image.index) for image in found)


def _held_out(examples: Sequence[Example], seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split a tenth of each class off, at least one image, unless the class has only one."""
    chosen: set[int] = set()
    indices = np.array([example.index for example in examples])
    for index in np.unique(indices):
        places = np.flatnonzero(indices == index)
        count = min(max(1, round(len(places) / _HELD_OUT)), len(places) - 1)
        generator = np.random.default_rng([seed, int(index)])
        chosen.update(generator.permutation(places)[:count].tolist())
    training = tuple(example for place, example in enumerate(examples) if place not in chosen)
    return training, tuple(examples[place] for place in sorted(chosen))


def unreadable(examples: Sequence[Example], channels: int) -> list[tuple[int, BadImage]]:
    """Return the places and the files of those `examples` that cannot be decoded; arrays always can."""

    def problem(example: Example) -> BadImage | None:
        assert isinstance(example.image, Path)
        try:
            load_image(example.image, channels)
        except InputError as exc:
            return BadImage(example.image, exc)
        return None

    files = [(place, example) for place, example in enumerate(examples) if isinstance(example.image, Path)]
    with ThreadPoolExecutor(usable_cpus(), "decode") as pool:
        found = pool.map(problem, (example for _, example in files))
        return [(place, bad) for (place, _), bad in zip(files, found, strict=True) if bad is not None]


def without_bad(data: TrainingData, bad: Sequence[BadImage], max_bad: int) -> TrainingData:
    """Return `data` without the images in `bad`.

    Raises:
        DataError: if there are more than `max_bad`, with their number and the first few names; or if none of a class
            are left to train on.
    """
    if len(bad) > max_bad:
        named = "; ".join(f"{one.path}: {one.error.why}" for one in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        total = len(data.training) + len(data.validation)
        why = f"{len(bad)} of {total} images cannot be read ({named}{more})"
        raise DataError(data.name, why, "repair or remove them, or raise --max-bad")
    paths = {one.path for one in bad}
    training, validation = (
        tuple(example for example in part if not (isinstance(example.image, Path) and example.image in paths))
        for part in (data.training, data.validation)
    )
    lost = {example.index for example in data.training} - {example.index for example in training}
    if lost:
        why = f"no readable image is left of the class {data.labels[min(lost)]!r}"
        raise DataError(data.name, why, "add images, or remove the folder")
    if not validation:
        raise DataError(data.name, "no readable image is left to validate on", "repair them, or give --val DIR")
    return replace(data, training=training, validation=validation, bad=tuple(bad))


def require_a_batch(data: TrainingData, batch_size: int) -> None:
    """Raise a DataError if there are fewer images to train on than in a batch."""
    if len(data.training) < batch_size:
        why = f"has {len(data.training)} images to train on, fewer than a batch of {batch_size}"
        raise DataError(data.name, why, "add images, or give a smaller --batch-size")

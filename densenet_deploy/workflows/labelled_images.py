"""Labelled images whose classes stand in a file.

ImageNet's validation images lie in one flat folder, and their classes in a file with one line per image, in one of two
forms::

    ILSVRC2012_val_00000001.JPEG 65       file and class, separated by a tab, a comma, or else a space
    65                                    the class alone: of the first image in sorted order, the second, and so on

A class is a label of the model, its index counted from 0, or a name that implies an order: if there are as many names
as the model has classes (`n01440764`, …), the sorted names are the classes in order, as sorted folders are. The class
numbers of the ILSVRC development kit count from 1 in a different order than the model's, and are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import DataError
from densenet_deploy.runtime.image_folders import IMAGE_SUFFIXES, LabelledImage, find_images

_FORM = "write FILE CLASS on every line, or CLASS alone for every image"


def read_ground_truth(
    folder: Path, file: Path, labels: Sequence[str], classes: int | None
) -> tuple[tuple[LabelledImage, ...], tuple[str, ...]]:
    """Return the images that `file` names in `folder` with their classes, sorted by path, and remarks.

    An image that is named but missing is returned too: reading it reports that. One that is not named is remarked on.

    Args:
        folder: where the images are.
        file: UTF-8 text.
        labels: those of the model, or none.
        classes: how many the model has; None if it does not say.

    Raises:
        InputError: if the folder or the file is missing.
        DataError: if a line has neither form, an image is named twice, or a class does not belong to the model.
    """
    lines = _lines(file)
    images = find_images(folder)
    pairs = _pairs(folder, file, lines, {path.name for path in images})
    if pairs is None:
        if len(lines) != len(images):
            raise DataError(file, f"has {len(lines)} lines for {len(images)} images", _FORM)
        pairs = list(zip(images, lines, strict=True))
    _require_distinct(file, [path for path, _ in pairs])
    indices = _indices(file, [name for _, name in pairs], labels, classes)
    named = {path for path, _ in pairs}
    skipped = sum(path not in named for path in images)
    remarks = (f"{skipped} images of {folder} are not in {file} and were skipped",) if skipped else ()
    found = (LabelledImage(path, index) for (path, _), index in zip(pairs, indices, strict=True))
    return tuple(sorted(found, key=lambda image: image.path)), remarks


def _lines(file: Path) -> list[str]:
    with os_errors_about(file):
        data = file.read_bytes()
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as exc:
        raise DataError(file, f"is not UTF-8 at byte {exc.start}", "save it as UTF-8 text") from exc
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(file, "is empty", _FORM)
    if "" in lines:
        raise DataError(file, f"line {lines.index('') + 1} is blank", _FORM)
    return lines


def _pairs(folder: Path, file: Path, lines: Sequence[str], known: set[str]) -> list[tuple[Path, str]] | None:
    """Files and classes, or None if the lines hold only classes, as the first line shows."""
    pairs = [_split(line) for line in lines]
    if not _is_image(pairs[0][0], known):
        return None
    for number, (name, label) in enumerate(pairs, start=1):
        if not label or not _is_image(name, known):
            raise DataError(file, f"line {number} ({lines[number - 1]!r}) does not name an image and its class", _FORM)
    return [(folder / name, label) for name, label in pairs]


def _split(line: str) -> tuple[str, str]:
    separator = next((mark for mark in "\t," if mark in line), None)
    name, *rest = line.split(separator, maxsplit=1)
    return name.strip(), rest[0].strip() if rest else ""


def _is_image(name: str, known: set[str]) -> bool:
    return name in known or Path(name).suffix.lower() in IMAGE_SUFFIXES


def _require_distinct(file: Path, paths: Sequence[Path]) -> None:
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise DataError(file, f"names {path.name} {count} times", "give every image one class")


def _indices(file: Path, names: Sequence[str], labels: Sequence[str], classes: int | None) -> list[int]:
    order = {label: index for index, label in enumerate(labels)}
    if all(name in order for name in names):
        counts = Counter(labels)
        repeated = next((name for name in names if counts[name] > 1), None)
        if repeated is None:
            return [order[name] for name in names]
        raise DataError(file, f"{repeated!r} is the label of several classes", "write the index of the class instead")
    if all(name.isdecimal() for name in names):
        return _checked_numbers(file, [int(name) for name in names], classes)
    return _by_sorted_name(file, names, order, classes)


def _checked_numbers(file: Path, numbers: list[int], classes: int | None) -> list[int]:
    highest = max(numbers)
    if classes is None or highest < classes:
        return numbers
    why = f"names class {highest}, the model has classes 0 to {classes - 1}"
    raise DataError(file, why, "count from 0 in the order of the model, which is not that of the ILSVRC kit")


def _by_sorted_name(file: Path, names: Sequence[str], order: dict[str, int], classes: int | None) -> list[int]:
    distinct = sorted(set(names))
    position = {name: index for index, name in enumerate(distinct)}
    unknown = [name for name in distinct if name not in order]
    if len(unknown) < len(distinct):
        raise DataError(file, f"{unknown[0]!r} is not a label of the model, although others are", "correct it")
    if classes is not None and len(distinct) != classes:
        why = f"names {len(distinct)} classes such as {distinct[0]!r}, none of them a label; the model has {classes}"
        raise DataError(file, why, "write labels of the model, or indices counted from 0")
    return [position[name] for name in names]

"""Class names that training code leaves beside the weights: by number, by name, or in a list.

Numbers count the outputs from 0. Names with other numbers are not used, and a note says so: which output they mean
cannot be known.

>>> class_names_in({"state_dict": {}, "class_to_idx": {"dog": 1, "cat": 0}}, ("state_dict",)).names
('cat', 'dog')
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from densenet_deploy.sources.networks import entries_of

_INDICES: Final = ("class_to_idx", "class_to_index", "class2idx", "label2id")
_NAMES: Final = (
    *("idx_to_class", "index_to_class", "idx2class", "id2label"),
    *("classes", "class_names", "label_names", "labels"),
)


@dataclass(frozen=True)
class ClassNames:
    """Class names in the order of the outputs, the `key` that they stand under, and a note on such that do not fit."""

    key: str | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def class_names_in(content: Any, keys: tuple[str, ...]) -> ClassNames:
    """Return the class names in a checkpoint's `content`, nearest to the weights that lie under `keys`."""
    left_out: ClassNames | None = None
    for entries in _on_the_way(content, keys):
        for key in (name for name in (*_INDICES, *_NAMES) if name in entries):
            try:
                names = _names_by_index(entries[key]) if key in _INDICES else _names_in_order(entries[key])
            except ValueError as exc:
                note = f"{key} not used as labels: {exc}; state --labels"
                left_out = left_out or ClassNames(key, notes=(note,))
                continue
            if names:
                return ClassNames(key, names)
    return left_out or ClassNames()


def _on_the_way(content: Any, keys: tuple[str, ...]) -> Iterator[Mapping[Any, Any]]:
    """Yield the dictionary of the weights and those around it, the innermost first."""
    around = [content]
    for key in keys:
        around.append(entries_of(around[-1])[key])
    yield from (entries for entries in reversed(around) if isinstance(entries, Mapping))


def _names_by_index(numbers: Any) -> tuple[str, ...]:
    """Return class names in the order of their numbers, as torchvision's `class_to_idx` states them.

    Raises:
        ValueError: saying how the numbers do not count from 0.
    """
    if not isinstance(numbers, Mapping) or not numbers:
        return ()
    places = {str(name): _number_of(place) for name, place in numbers.items()}
    return _ordered([(place, name) for name, place in places.items()])


def _names_in_order(names: Any) -> tuple[str, ...]:
    """Return class names that stand in a list, or in a dictionary by their number. Errors as `_names_by_index`."""
    if isinstance(names, Mapping):
        if not names or not all(isinstance(name, str) for name in names.values()):
            return ()
        return _ordered([(_number_of(place), name) for place, name in names.items()])
    names = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _number_of(place: Any) -> int | None:
    """Return the whole number of a class, perhaps as text or of NumPy or PyTorch; None if it is something else."""
    if isinstance(place, str):
        return int(place) if place.isascii() and place.isdecimal() else None
    try:
        return operator.index(place)
    except TypeError:
        return None


def _ordered(pairs: list[tuple[int | None, str]]) -> tuple[str, ...]:
    numbers = [place for place, _ in pairs if place is not None]
    if len(numbers) < len(pairs):
        raise ValueError("its classes do not have whole numbers")
    if sorted(numbers) != list(range(len(numbers))):
        counted = f"{min(numbers)} to {max(numbers)}" if numbers else "none"
        raise ValueError(f"its {len(numbers)} classes have the numbers {counted}, not 0 to {len(numbers) - 1}")
    return tuple(name for _, name in sorted((place, name) for place, name in pairs if place is not None))

"""Facts that a caller states about a model: what its images look like, what its outputs mean, how it is built.

Everything is optional. What is stated here wins over what an artifact's manifest, a `config.json` beside the weights,
the graph or the architecture family says; None means "as the model says".

>>> ModelFacts(image_size=(256, 128), mean=0.5, std=0.5).given()
{'image_size': (256, 128), 'mean': (0.5,), 'std': (0.5,)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import INTERPOLATIONS, NO_RESIZE, TASKS, Size
from densenet_deploy.options import require_choice, require_range

AUTO: Final = "auto"
"""The task that says: find out from the model."""

_LARGEST_MEAN: Final = 2.0  # of values in 0..1: 123.7 is a mean of values in 0..255
_SMALLEST_STD: Final = 1e-6
_LARGEST_STD: Final = 4.0  # which leaves a quarter of the range of pixels
_LARGEST_PIXEL: Final = 255.0
_LARGEST_SIDE: Final = 8192
_MOST_CHANNELS: Final = 4096


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model's images and outputs; None leaves each to the model.

    Lists become tuples, a single mean, std or threshold a tuple of one, and a square image size one number.

    >>> ModelFacts(image_size=320, labels=("cat", "dog")).given()
    {'image_size': 320, 'labels': ('cat', 'dog')}

    Attributes:
        image_size: of the input: one number, or (height, width).
        channels: of the input.
        resize: before the crop: the shorter side, or (height, width) regardless of the aspect ratio, or "none".
        interpolation: nearest, bilinear or bicubic.
        mean: subtracted from values in 0..1; one, or one per channel.
        std: the divisor after that; one, or one per channel.
        labels: class names in the order of the outputs.
        task: multiclass, multilabel, regression, features, or auto to find out.
        thresholds: of a multilabel model, in 0..1; one, or one per label.

    Raises:
        UsageError: if a value is out of range or unknown.
    """

    image_size: Size | None = None
    channels: int | None = None
    resize: Size | Literal["none"] | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    task: str | None = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check("image_size", _image_size)
        self._check("channels", lambda name, value: require_range(name, _whole(name, value), 1, _MOST_CHANNELS))
        self._check("resize", lambda name, value: value if value == NO_RESIZE else _size(name, value))
        self._check("interpolation", lambda name, value: require_choice(name, value, INTERPOLATIONS))
        self._check("mean", _means)
        self._check("std", _stds)
        self._check("labels", _names)
        self._check("task", lambda name, value: require_choice(name, value, (AUTO, *TASKS)))
        self._check("thresholds", lambda name, value: _numbers(name, value, 0.0, 1.0))

    def given(self) -> dict[str, Any]:
        """Return the facts that were stated, by name."""
        return _stated(self)

    def _check(self, field: str, checked: Callable[[str, Any], Any]) -> None:
        value = getattr(self, field)
        if value is not None:
            object.__setattr__(self, field, checked(_option(field), value))


@dataclass(frozen=True)
class Architecture:
    """Numbers that make a variant a custom one; None keeps the variant's.

    >>> Architecture(growth_rate=24, blocks=(6, 12, 8)).changes()
    {'growth_rate': 24, 'blocks': (6, 12, 8)}

    Attributes:
        growth_rate: channels that each layer adds.
        blocks: layers in each block.
        init_features: channels after the stem.
        compression: fraction of the channels that a transition keeps, above 0 and up to 1.
        bn_size: width of the bottleneck in growth rates; 0 for layers without one.
        drop_rate: fraction of features dropped in training, 0 to below 1.
        stem: `imagenet`, `imagenet-nopool`, `cifar`, `3x3-pool`, `3x3-nopool`, `deep` or `deep-blur`.
    """

    growth_rate: int | None = None
    blocks: tuple[int, ...] | None = None
    init_features: int | None = None
    compression: float | None = None
    bn_size: int | None = None
    drop_rate: float | None = None
    stem: str | None = None

    def changes(self) -> dict[str, Any]:
        """Return the numbers that were given."""
        return _stated(self)

    def options(self) -> tuple[str, ...]:
        """Return the options of the command line that give those numbers."""
        return tuple(f"--{_option(name)}" for name in self.changes())


def _stated(facts: ModelFacts | Architecture) -> dict[str, Any]:
    values = ((field.name, getattr(facts, field.name)) for field in dataclasses.fields(facts))
    return {name: value for name, value in values if value is not None}


def _option(field: str) -> str:
    return field.replace("_", "-")


def _image_size(name: str, value: object) -> Size:
    size = _size(name, value)
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else size


def _size(name: str, value: object) -> Size:
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(sides) not in (1, 2):
        raise UsageError(f"{name}={value}", "is not one size, or height and width", f"give {name}=224 or (256, 128)")
    checked = tuple(require_range(name, _whole(name, side), 1, _LARGEST_SIDE) for side in sides)
    return checked[0] if len(checked) == 1 else (checked[0], checked[1])


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"{name}={value}", "is not a whole number", "give a number of pixels or channels")
    return int(value.__index__())


def _numbers(name: str, value: object, low: float, high: float) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not values:
        raise UsageError(name, "holds no numbers", "give one, or one for each channel or label")
    return tuple(require_range(name, _number(name, item), low, high) for item in values)


def _means(name: str, value: object) -> tuple[float, ...]:
    return _of_values_to_one(
        name, _numbers(name, value, -_LARGEST_PIXEL, _LARGEST_PIXEL), -_LARGEST_MEAN, _LARGEST_MEAN
    )


def _stds(name: str, value: object) -> tuple[float, ...]:
    stds = _numbers(name, value, _SMALLEST_STD, _LARGEST_PIXEL)
    return _of_values_to_one(name, stds, _SMALLEST_STD, _LARGEST_STD)


def _of_values_to_one(name: str, numbers: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
    """Refuse numbers that can only be those of pixels in 0..255."""
    outside = next((number for number in numbers if not low <= number <= high), None)
    if outside is not None:
        fix = f"give one of values in 0..1; of pixels in 0..255, divide mean and std by 255: {outside / 255:.4g}"
        raise UsageError(f"{name}={outside}", f"is not from {low} to {high}", fix)
    return numbers


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"{name}={value}", "is not a number", "give numbers") from exc


def _names(name: str, value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if not names or not all(isinstance(item, str) for item in names):
        raise UsageError(f"{name}={value}", "is not a list of names", "give one name for each output")
    return tuple(map(str, names))

"""The arrays that go into a model and come out of it, by name, checked before they reach native code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import FeedError
from densenet_deploy.manifest import Preprocessing

Array = npt.NDArray[Any]


class SupportsArray(Protocol):
    """An array of any library, a torch tensor for one, that NumPy can look at."""

    def __array__(self) -> Array:
        """Return it as a NumPy array."""


Feed = Array | SupportsArray
Feeds = Mapping[str, Any]
"""Arrays by name: NumPy's, or any library's that `numpy.asarray` takes without a cast."""

# Values of a normalized image stay within about ±3; beyond this multiple of their range a feed was not normalized.
_VALUE_SLACK: Final = 8.0


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of an input or output; a dimension of None takes any size of at least 1."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def of_batch(self, batch: int) -> TensorSpec:
        """Return the spec with `batch` as its first dimension, if that takes any size."""
        return replace(self, shape=(batch, *self.shape[1:])) if self.shape and self.shape[0] is None else self

    def of_any_batch(self) -> TensorSpec:
        """Return the spec with a first dimension that takes any size."""
        return replace(self, shape=(None, *self.shape[1:]))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` can be fed."""
        return _fits(shape, self.shape)

    def __str__(self) -> str:
        sizes = ", ".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {self.dtype}"


def checked_feeds(inputs: tuple[TensorSpec, ...], feeds: Feeds | Feed, limit: float | None) -> dict[str, Array]:
    """Return contiguous NumPy arrays for `inputs`; `limit` None leaves values unchecked.

    Raises:
        FeedError: if a feed is missing or unknown, or has another type, shape or values than the model takes.
    """
    named = _by_name(inputs, feeds)
    if len(named) != len(inputs) or any(spec.name not in named for spec in inputs):
        expected = ", ".join(spec.name for spec in inputs)
        raise FeedError(", ".join(map(str, named)) or "nothing", "was fed", f"feed exactly: {expected}")
    return {spec.name: _checked_feed(spec, named[spec.name], limit) for spec in inputs}


def _by_name(inputs: tuple[TensorSpec, ...], feeds: Feeds | Feed) -> Feeds:
    if isinstance(feeds, Mapping):
        return feeds
    if len(inputs) == 1:
        return {inputs[0].name: feeds}
    expected = ", ".join(spec.name for spec in inputs)
    raise FeedError("one array", "was fed", f"the model has {len(inputs)} inputs: feed a dict with {expected}")


def as_array(name: str, value: object) -> Array:
    """Return `value` as a NumPy array of the same type, without a copy where that is possible.

    Raises:
        FeedError: naming `name`, if it is not an array, or of a type that NumPy does not have.
    """
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__array__"):
        raise FeedError(name, f"is a {type(value).__name__}", "give a NumPy array or a torch tensor")
    try:
        if hasattr(value, "detach"):  # a torch tensor that wants a gradient, or is on a GPU, shows NumPy nothing
            value = value.detach().cpu()
        return np.asarray(cast("SupportsArray", value))
    except (TypeError, ValueError, RuntimeError) as exc:
        reason = str(exc).partition("\n")[0]
        raise FeedError(name, f"cannot be read as a NumPy array: {reason}", "convert it to one first") from exc


def delivered(results: dict[str, Array], buffers: Mapping[str, Array]) -> dict[str, Array]:
    """Return `results`, copied into the caller's `buffers` where there is one.

    Raises:
        FeedError: if a buffer does not belong to an output, or has another type or shape.
    """
    if unknown := buffers.keys() - results.keys():
        raise FeedError(", ".join(sorted(unknown)), "is not an output", f"outputs are: {', '.join(results)}")
    for name, buffer in buffers.items():
        result = results[name]
        if buffer.dtype != result.dtype or buffer.shape != result.shape:
            why = f"the buffer is {buffer.shape} {buffer.dtype}, the result {result.shape} {result.dtype}"
            raise FeedError(name, why, "allocate a buffer of the result's shape and type")
        np.copyto(buffer, result)
    return {**results, **buffers}


def _checked_feed(spec: TensorSpec, value: object, limit: float | None) -> Array:
    array = as_array(spec.name, value)
    if array.dtype != spec.dtype:
        raise FeedError(spec.name, f"is {array.dtype}, the model takes {spec.dtype}", _dtype_fix(array, spec))
    if not spec.fits(array.shape):
        raise FeedError(spec.name, f"has shape {array.shape}, the model takes {spec}", _shape_fix(array, spec))
    array = np.asarray(array, order="C")  # ascontiguousarray would give a number an axis
    if limit is not None and array.dtype.kind == "f":
        _check_values(spec.name, array, limit)
    return array


@functools.lru_cache  # an application feeds few shapes
def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size == want or (want is None and size > 0) for size, want in zip(shape, expected, strict=True)
    )


def value_limit(preprocessing: Preprocessing | None) -> float:
    """Return the largest absolute value that a feed may hold: far beyond that of any normalized image."""
    if preprocessing is None:
        return float(np.finfo(np.float32).max)
    return _VALUE_SLACK * max(map(abs, preprocessing.value_range))


def _check_values(name: str, array: Array, limit: float) -> None:
    low, high = array.item(array.argmin()), array.item(array.argmax())  # for small arrays twice as fast as min, max
    if -limit <= low and high <= limit:  # False for NaN as well
        return
    if not np.isfinite(array).all():
        raise FeedError(name, "holds NaN or Inf", "feed finite values")
    fix = "prepare it with densenet_deploy.runtime.preprocess, or open the runner with check_values=False"
    raise FeedError(name, f"has values from {low:.4g} to {high:.4g}, outside those of a normalized image", fix)


def _dtype_fix(array: Array, spec: TensorSpec) -> str:
    if spec.dtype == np.uint8:
        return "feed pixels, uint8 of (N, H, W, C): the graph normalizes them"
    if array.dtype == np.uint8:
        return "prepare images with densenet_deploy.runtime.preprocess"
    return f"convert it yourself: array.astype({spec.dtype})"


def _shape_fix(array: Array, spec: TensorSpec) -> str:
    if array.ndim == 4 and array.shape[3] == spec.shape[1] and array.shape[1] != spec.shape[1]:
        return "it looks like (N, H, W, C): transpose it with array.transpose(0, 3, 1, 2)"
    if array.ndim == len(spec.shape) - 1:
        return "add the batch dimension: array[None]"
    return "resize or batch it to fit"

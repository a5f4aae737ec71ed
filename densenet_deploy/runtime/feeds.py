"""What goes into a model and what comes out: arrays by name, checked before they reach native code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import FeedError
from densenet_deploy.manifest import Preprocessing

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# A normalized image stays within about ±3; past this multiple of its range a feed was surely not normalized.
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

    def __str__(self) -> str:
        sizes = ", ".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {self.dtype}"


def checked_feeds(inputs: tuple[TensorSpec, ...], feeds: Feeds, limit: float | None) -> dict[str, Array]:
    """Return contiguous feeds for `inputs`; `limit` None leaves values unchecked.

    Raises:
        FeedError: if a feed is missing, unknown, or has another type, shape or values than the model takes.
    """
    if len(feeds) != len(inputs) or any(spec.name not in feeds for spec in inputs):
        wanted = ", ".join(spec.name for spec in inputs)
        raise FeedError(", ".join(map(str, feeds)) or "nothing", "was fed", f"feed exactly: {wanted}")
    return {spec.name: _checked_feed(spec, feeds[spec.name], limit) for spec in inputs}


def delivered(results: dict[str, Array], buffers: Feeds) -> dict[str, Array]:
    """Return `results`, copied into the caller's `buffers` where there is one.

    Raises:
        FeedError: if a buffer is for no output, or has another type or shape.
    """
    if strangers := buffers.keys() - results.keys():
        raise FeedError(", ".join(sorted(strangers)), "is no output", f"outputs are: {', '.join(results)}")
    for name, buffer in buffers.items():
        result = results[name]
        if buffer.dtype != result.dtype or buffer.shape != result.shape:
            why = f"the buffer is {buffer.shape} {buffer.dtype}, the result {result.shape} {result.dtype}"
            raise FeedError(name, why, "allocate a buffer of the result's shape and type")
        np.copyto(buffer, result)
    return {**results, **buffers}


def _checked_feed(spec: TensorSpec, array: Array, limit: float | None) -> Array:
    if not isinstance(array, np.ndarray):
        raise FeedError(spec.name, f"is a {type(array).__name__}", "give a numpy array")
    if array.dtype != spec.dtype:
        raise FeedError(spec.name, f"is {array.dtype}, the model takes {spec.dtype}", _dtype_fix(array, spec))
    if not _fits(array.shape, spec.shape):
        raise FeedError(spec.name, f"has shape {array.shape}, the model takes {spec}", _shape_fix(array, spec))
    array = np.ascontiguousarray(array)
    if limit is not None and array.dtype.kind == "f":
        _check_values(spec.name, array, limit)
    return array


@functools.lru_cache  # the shapes of one application's calls are few
def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        size == want or (want is None and size > 0) for size, want in zip(shape, wanted, strict=True)
    )


def value_limit(preprocessing: Preprocessing | None) -> float:
    """Return the largest absolute value that a feed may hold: what no normalized image has, or any finite number."""
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
    raise FeedError(name, f"reaches from {low:.4g} to {high:.4g}, which no normalized image does", fix)


def _dtype_fix(array: Array, spec: TensorSpec) -> str:
    if array.dtype == np.uint8:
        return "prepare images with densenet_deploy.runtime.preprocess"
    return f"convert it yourself: array.astype({spec.dtype})"


def _shape_fix(array: Array, spec: TensorSpec) -> str:
    if array.ndim == 4 and array.shape[3] == spec.shape[1] and array.shape[1] != spec.shape[1]:
        return "it looks like (N, H, W, C): transpose it with array.transpose(0, 3, 1, 2)"
    if array.ndim == len(spec.shape) - 1:
        return "add the batch dimension: array[None]"
    return "resize or batch it to fit"

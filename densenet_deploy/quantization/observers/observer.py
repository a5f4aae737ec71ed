"""What an observer is: it watches one tensor and returns the range that INT8 should cover of every channel.

Adding an observer is adding a file to this package with one class in it::

    @observers.register("minmax")
    class MinMaxObserver(Observer):
        def ranges(self) -> ChannelRanges: ...

Its memory depends only on the number of channels. Its result does not depend on the order of the samples or on how they
were batched, and `state` and `restore` carry it over an interruption bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import DataError, FeedError, UsageError
from densenet_deploy.records import from_plain, parse_json
from densenet_deploy.registry import Registry

Floats = npt.NDArray[np.float32]
State = Mapping[str, npt.NDArray[Any]]

observers: Registry[type[Observer]] = Registry("observer", "densenet_deploy.quantization.observers")


@dataclass(frozen=True, eq=False)
class ChannelRanges:
    """For each of C channels the smallest and the largest value to represent: `low` and `high`, (C,) float32."""

    low: Floats
    high: Floats


@dataclass(frozen=True)
class ObserverOptions:
    """Options of an observer without any; each field of a subclass is one option."""


@dataclass(frozen=True)
class CalibrationConfig:
    """What to collect, and how.

    >>> from densenet_deploy.quantization.observers.percentile import PercentileOptions
    >>> CalibrationConfig("percentile", PercentileOptions(percentile=99.9)).facts()["options"]["percentile"]
    99.9

    Attributes:
        observer: the name of the observer: `minmax`, `percentile`, `entropy` or `mse`.
        options: its options; None means its defaults.
        tensors: the names of the tensors to observe; None means all of float32.

    Raises:
        UnknownNameError: if the observer is unknown.
        UsageError: if the options are another observer's.
    """

    observer: str = "minmax"
    options: ObserverOptions | None = None
    tensors: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        expected = observers.get(self.observer).options_type
        if self.options is not None and type(self.options) is not expected:
            found = type(self.options).__name__
            raise UsageError(found, f"are not options of {self.observer!r}", f"give {expected.__name__}")

    def facts(self) -> dict[str, Any]:
        """Return the configuration with plain types and all defaults."""
        options = self.options or observers.get(self.observer).options_type()
        tensors = None if self.tensors is None else list(self.tensors)
        return {"observer": self.observer, "options": dataclasses.asdict(options), "tensors": tensors}


def parse_observer_options(observer: str, texts: Iterable[str]) -> ObserverOptions:
    """Return the options of `observer` from texts.

    >>> parse_observer_options("percentile", ["percentile=99.9"])
    PercentileOptions(bins=1024, pixels=128, percentile=99.9)

    Raises:
        UnknownNameError: if the observer is unknown.
        UsageError: if it has no such option, naming the nearest, or a value is of another type or out of range.
    """
    facts: dict[str, object] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            facts[name.strip()] = parse_json(number)
        except ValueError as exc:
            raise UsageError(text, "is not NAME=NUMBER", "write it like percentile=99.9") from exc
    kind, fix = observers.get(observer).options_type, "give options of this observer as NAME=NUMBER"
    return from_plain(kind, facts, fail=lambda name, why: UsageError(f"{observer}: {name}", why, fix), strict=True)


class Observer(ABC):
    """Watches one tensor of `channels` channels; knows the exact minimum and maximum of each.

    Attributes:
        options_type: what the constructor takes as `options`; its defaults are used where none are given.
    """

    options_type: ClassVar[type[ObserverOptions]] = ObserverOptions

    def __init__(self, channels: int, options: ObserverOptions | None = None) -> None:  # noqa: ARG002
        self._low = np.full(channels, np.inf, np.float32)
        self._high = np.full(channels, -np.inf, np.float32)

    def update(self, array: Floats) -> None:
        """Observe the activations of N samples, (N, C, ...) float32.

        Raises:
            FeedError: if the array has another type, rank or number of channels.
            DataError: if it holds NaN or Inf. The observer is then unchanged.
        """
        values = self._by_channel(array)
        low, high = values.min(axis=(0, 2)), values.max(axis=(0, 2))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):  # min and max pass NaN on
            raise DataError("activations", "hold NaN or Inf", "check the weights and the calibration data")
        # Adding 0 turns -0 into 0: which of the two a minimum returns is not defined, and bits are to be equal.
        np.minimum(self._low, low + np.float32(0), out=self._low)
        np.maximum(self._high, high + np.float32(0), out=self._high)

    @abstractmethod
    def ranges(self) -> ChannelRanges:
        """Return the ranges that all activations so far suggest.

        Raises:
            DataError: before the first `update`.
        """

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that `restore` needs, by name; the arrays are the observer's own, not copies."""
        return {"low": self._low, "high": self._high}

    def restore(self, state: State) -> None:
        """Continue from what `state` returned, in this process or an earlier one."""
        self._low, self._high = state["low"].copy(), state["high"].copy()

    def extremes(self) -> ChannelRanges:
        """Return the smallest and the largest value of each channel so far; errors as of `ranges`."""
        if np.inf in self._low:
            raise DataError("observer", "saw no activations", "update it before asking for ranges")
        return ChannelRanges(self._low.copy(), self._high.copy())

    def _by_channel(self, array: Floats) -> Floats:
        """Return a view (N, C, pixels)."""
        channels = len(self._low)
        if array.dtype != np.float32 or array.ndim < 2 or array.shape[1] != channels or array.size == 0:
            raise FeedError("activations", f"are {array.shape} {array.dtype}", f"observe float32 (N, {channels}, ...)")
        return array.reshape(len(array), channels, math.prod(array.shape[2:]))

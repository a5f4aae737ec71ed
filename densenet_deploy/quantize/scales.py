"""Scales and zero points: how float values are written in 8 bits, q = round(x / scale) + zero_point.

A dense block is one bus: its segments meet in Concats and are read many times, so they all share one scale, and a
Concat of quantized segments is a plain copy. What leaves a ReLU is never negative and starts at code 0, so saturation
*is* the ReLU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.bus import connected_concats

Float = npt.NDArray[np.float32]

_LEVELS: Final = 255
_SIGNED_ZERO: Final = 128
_SIGNED_STEPS: Final = 127
_KEEP_TYPE: Final = ("Max", "Min", "AveragePool")


class Range(Protocol):
    """The calibrated range of each channel of a tensor, (C,) each."""

    @property
    def low(self) -> Float: ...
    @property
    def high(self) -> Float: ...


@dataclass(frozen=True)
class QuantizedType:
    """How one tensor is written in 8 bits: codes 0..255 around `zero_point`."""

    scale: float
    zero_point: int

    @property
    def code_zero(self) -> np.uint8 | np.int8:
        """The zero point as Q/DQ nodes carry it: a symmetric type is int8, where zero is code 0."""
        return np.int8(0) if self.zero_point == _SIGNED_ZERO else np.uint8(self.zero_point)

    @property
    def lowest(self) -> float:
        """The value of the first code."""
        return -self.zero_point * self.scale

    @property
    def highest(self) -> float:
        """The value of the last code."""
        return (_LEVELS - self.zero_point) * self.scale

    def codes_of(self, values: Float) -> npt.NDArray[np.uint8]:
        """Return the codes nearest to `values`, 0..255."""
        codes = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        return np.asarray(np.clip(codes, 0, _LEVELS), np.uint8)

    def signed_codes_of(self, values: Float) -> npt.NDArray[np.uint8] | npt.NDArray[np.int8]:
        """Return the codes nearest to `values` as Q/DQ nodes carry them: int8 in a symmetric type."""
        codes = self.codes_of(values)
        return (codes.astype(np.int16) - _SIGNED_ZERO).astype(np.int8) if self.zero_point == _SIGNED_ZERO else codes


def unsigned(high: float) -> QuantizedType:
    """Codes 0..255 for values 0..`high`."""
    return QuantizedType(max(high, _SMALLEST) / _LEVELS, 0)


def symmetric(bound: float) -> QuantizedType:
    """Codes 1..255 for values −`bound`..`bound`, zero at 128: as int8, shifted."""
    return QuantizedType(max(bound, _SMALLEST) / _SIGNED_STEPS, _SIGNED_ZERO)


def affine(low: float, high: float) -> QuantizedType:
    """Codes 0..255 for values `low`..`high`, with an exact zero."""
    low, high = min(low, 0.0), max(high, _SMALLEST)
    scale = (high - low) / _LEVELS
    return QuantizedType(scale, round(-low / scale))


_SMALLEST: Final = 1e-8


def plan_types(graph: ir.Graph, ranges: Mapping[str, Range]) -> dict[str, QuantizedType]:
    """Choose the type of every value that `ranges` knows.

    Values that meet in Concats share one type, wide enough for all: unsigned if none of them is ever negative, else
    symmetric. What a ReLU gives (also after pooling) is unsigned; the rest is affine. What only clips or averages such
    a value keeps its type.
    """
    types = {name: _own_type(found) for name, found in ranges.items()}
    for members in _buses(graph):
        known = [ranges[name] for name in members if name in ranges]
        if known:
            types |= dict.fromkeys(members, _shared_type(known))
    for node in graph:
        source, result = str(node.inputs[0].name) if node.inputs and node.inputs[0] else "", str(node.outputs[0].name)
        if node.op_type in _KEEP_TYPE and source in types and result not in types:
            types[result] = types[source]
    return types


def _shared_type(ranges: Iterable[Range]) -> QuantizedType:
    low, high = (np.concatenate(ends) for ends in zip(*((found.low, found.high) for found in ranges), strict=True))
    if low.min() >= 0:
        return unsigned(float(high.max()))
    return symmetric(float(np.maximum(np.abs(low), np.abs(high)).max()))


def _own_type(found: Range) -> QuantizedType:
    low, high = float(found.low.min()), float(found.high.max())
    return unsigned(high) if low >= 0 else affine(low, high)


def _buses(graph: ir.Graph) -> Iterator[set[str]]:
    """Yield the names of values that meet in Concats, each group with the Concats' outputs."""
    for group in connected_concats([node for node in graph if node.op_type == "Concat"]):
        values = (value for node in group for value in (*node.inputs, *node.outputs))
        yield {str(value.name) for value in values if value is not None}

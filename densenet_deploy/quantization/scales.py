"""How float values are written in 8 bits: q = round(x / scale) + zero_point.

**Activations.** A dense block is one bus: its segments meet in Concats and have many readers, so they all share one
scale, and a Concat of quantized segments is a plain copy. The output of a ReLU is never negative and gets zero point 0,
so saturation *is* the ReLU.

**Weights** are symmetric: w ≈ q·s with q in ±127, or ±63 where the CPU adds pairs of products in 16 bits that would
overflow (x86 without VNNI: 2·255·127 > 2¹⁵). A **bias** is int32 at scale s_x·s_w. That can overflow without an error:
a channel with a large bias and nearly dead weights needs a bias of many billions. So the weight scale of a
row is raised until its bias fits,

    s_w = max(max|w| / limit, |b| / (s_x · 2³⁰)),

which costs such a row its weights and no accuracy: it was a constant, its bias.

**Bounds of clips.** A clip keeps the type of its input, so its bound θ is rounded to a quantized value, and one beyond
the last becomes θ', the last. Where nothing of a channel passes the clip, max(x, θ) with θ above all quantized values
or min(x, θ) with θ below them, the channel is the constant θ, which becomes θ': as far away as θ is. Such channels are
those with a ReLU that never opens, and θ = −t/s is as far away as s is small. The convolution that reads them can hold
the difference in its bias, W·(θ − θ'), also across average pools, which keep a constant. A bound on the other side cuts
nothing off, and moving it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.bus import connected_concats
from densenet_deploy.graph.nodes import (
    Double,
    Float,
    averages_whole_windows,
    constant,
    is_operator,
    new_initializer,
    only_reader,
    pads,
    set_bias,
    weight_and_bias,
)
from densenet_deploy.quantization.observers.observer import ChannelRanges

Int8 = npt.NDArray[np.int8]

LIMITS: Final = {8: 127, 7: 63}
"""The largest quantized weight by `weight_bits`."""

_LEVELS: Final = 255
_SIGNED_ZERO: Final = 128
_KEEP_TYPE: Final = ("Max", "Min", "AveragePool")
_MOVE_VALUES: Final = ("Concat", *_KEEP_TYPE)
_SMALLEST_RANGE: Final = 1e-8
_SMALLEST_SCALE: Final = 1e-12
_BIAS_LIMIT: Final = 2.0**30


# -- activations


@dataclass(frozen=True)
class QuantizedType:
    """How one tensor is written in 8 bits: 0..255 around `zero_point`."""

    scale: float
    zero_point: int

    @property
    def stored_zero_point(self) -> np.uint8 | np.int8:
        """The zero point as Q/DQ nodes carry it: a symmetric type is int8, with zero point 0."""
        return np.int8(0) if self.zero_point == _SIGNED_ZERO else np.uint8(self.zero_point)

    @property
    def lowest(self) -> float:
        """The value of 0."""
        return -self.zero_point * self.scale

    @property
    def highest(self) -> float:
        """The value of 255."""
        return (_LEVELS - self.zero_point) * self.scale

    def quantized(self, values: Float) -> npt.NDArray[np.uint8]:
        """Return `values` quantized, 0..255."""
        nearest = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        return np.asarray(np.clip(nearest, 0, _LEVELS), np.uint8)

    def stored(self, values: Float) -> npt.NDArray[np.uint8] | npt.NDArray[np.int8]:
        """Return `values` quantized as Q/DQ nodes carry them: int8 in a symmetric type."""
        nearest = self.quantized(values)
        return (nearest.astype(np.int16) - _SIGNED_ZERO).astype(np.int8) if self.zero_point == _SIGNED_ZERO else nearest


def unsigned(high: float) -> QuantizedType:
    """Return the type 0..255 for values 0..`high`."""
    return QuantizedType(max(high, _SMALLEST_RANGE) / _LEVELS, 0)


def affine(low: float, high: float) -> QuantizedType:
    """Return the type 0..255 for values `low`..`high`, with an exact zero; unsigned if none of them is negative."""
    low, high = min(low, 0.0), max(high, _SMALLEST_RANGE)
    scale = (high - low) / _LEVELS
    return QuantizedType(scale, round(-low / scale))


def choose_types(graph: ir.Graph, ranges: Mapping[str, ChannelRanges]) -> dict[str, QuantizedType]:
    """Choose the type of every value in `ranges`.

    Every type is affine, and so unsigned after a ReLU. Values that meet in Concats share one, wide enough for all. The
    output of a clip or an average keeps the type of its input. What only a MaxPool reads has the type of its output:
    values below that range saturate, and no maximum changes by it.
    """
    types = {name: affine(float(found.low.min()), float(found.high.max())) for name, found in ranges.items()}
    for members in _buses(graph):
        known = [ranges[name] for name in members if name in ranges]
        if known:
            types |= dict.fromkeys(members, _shared_type(known))
    for node in graph:
        source, result = str(node.inputs[0].name) if node.inputs and node.inputs[0] else "", str(node.outputs[0].name)
        if node.op_type in _KEEP_TYPE and source in types and result not in types:
            types[result] = types[source]
    for node in reversed(graph):
        value = node.outputs[0]
        reader = only_reader(value)
        if is_operator(reader, "MaxPool") and node.op_type not in _MOVE_VALUES and value.name in types:
            types[str(value.name)] = types.get(str(reader.outputs[0].name), types[str(value.name)])
    return types


def _shared_type(ranges: Iterable[ChannelRanges]) -> QuantizedType:
    low, high = (np.concatenate(ends) for ends in zip(*((found.low, found.high) for found in ranges), strict=True))
    return affine(float(low.min()), float(high.max()))


def _buses(graph: ir.Graph) -> Iterator[set[str]]:
    """Yield the names of values that meet in Concats, each group with the Concats' outputs."""
    for group in connected_concats([node for node in graph if node.op_type == "Concat"]):
        values = (value for node in group for value in (*node.inputs, *node.outputs))
        yield {str(value.name) for value in values if value is not None}


# -- weights and biases


@dataclass(frozen=True)
class IntegerWeights:
    """int8 weights (M, …), their scales, (M,) or () where all rows share one, and an int32 bias (M,)."""

    values: Int8
    scales: Float
    bias: npt.NDArray[np.int32]


def quantize_rows(
    weights: Double, *, bits: int = 8, per_channel: bool = True, smallest: Double | float = _SMALLEST_SCALE
) -> tuple[Int8, Float]:
    """Return `weights` (M, …) in int8 and their scales, (M,) or () for all rows; no scale is below `smallest`."""
    limit = LIMITS[bits]
    rows = np.abs(weights).max(axis=tuple(range(1, weights.ndim)))
    scales = np.maximum(np.maximum(rows / limit, smallest), _SMALLEST_SCALE)
    if not per_channel:
        scales = scales.max()
    rounded = scales.astype(np.float32)
    column = rounded.astype(np.float64).reshape(rounded.shape + (1,) * (weights.ndim - 1))
    return np.rint(weights / column).astype(np.int8), rounded  # within the limit: a scale is rounded by 6e-8


def smallest_scales(bias: Double, input_scale: float) -> Double:
    """Return the smallest scales of rows of weights, (M,), at which `bias` (M,) fits for an input of this scale."""
    return np.abs(bias) / (input_scale * _BIAS_LIMIT)


def quantize_with_bias(
    weights: Double, bias: Double, input_scale: float, *, bits: int = 8, per_channel: bool = True
) -> IntegerWeights:
    """Write `weights` (M, …) and `bias` (M,) for an input of scale `input_scale`."""
    needed = smallest_scales(bias, input_scale)
    values, scales = quantize_rows(weights, bits=bits, per_channel=per_channel, smallest=needed)
    return IntegerWeights(values, scales, np.rint(bias / (input_scale * scales.astype(np.float64))).astype(np.int32))


# -- bounds of clips


def hold_bound(graph: ir.Graph, clip: ir.Node, given: QuantizedType) -> None:
    """Move bounds beyond all quantized values to the last, and add the difference to the Conv that reads the clip.

    Args:
        graph: the graph of `clip`, still float after it; changed in place.
        clip: a Max or a Min with a constant.
        given: the type of its input and output.
    """
    bounds, (others, conv) = constant(clip.inputs[1]), _after(clip)
    numbers = weight_and_bias(conv) if conv is not None else None
    if bounds is None or numbers is None:
        return
    assert conv is not None
    weight, bias = numbers
    exact = bounds.astype(np.float64)
    held = np.minimum(exact, given.highest) if clip.op_type == "Max" else np.maximum(exact, given.lowest)
    missing = (_clipped(exact, others) - _clipped(held, others)).ravel()
    if not missing.any() or len(missing) != weight.shape[1]:
        return
    set_bias(graph, conv, bias + weight.sum(axis=(2, 3)) @ missing, "held")
    name = f"{clip.outputs[0].name}.held"
    clip.replace_input_with(1, new_initializer(graph, name, held.astype(np.float32)))


def _after(clip: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """Return the clips between `clip` and the one Conv that reads it, and that Conv; None if a constant changes."""
    clips, reader = [], only_reader(clip.outputs[0])
    while _keeps_constants(reader):
        assert reader is not None
        if reader.op_type != "AveragePool":
            clips.append(reader)
        reader = only_reader(reader.outputs[0])
    return clips, reader if is_operator(reader, "Conv") and not pads(reader) else None


def _keeps_constants(node: ir.Node | None) -> bool:
    """Whether `node` maps a constant to a constant: a clip, or a pool that averages whole windows."""
    if is_operator(node, "Max") or is_operator(node, "Min"):
        return constant(node.inputs[1]) is not None
    return averages_whole_windows(node)


def _clipped(values: Double, clips: Iterable[ir.Node]) -> Double:
    """Return `values` after `clips`."""
    for clip in clips:
        bounds = constant(clip.inputs[1])
        assert bounds is not None
        values = np.maximum(values, bounds) if clip.op_type == "Max" else np.minimum(values, bounds)
    return values

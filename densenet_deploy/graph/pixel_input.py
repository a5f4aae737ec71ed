"""Graphs that take pixels: uint8 (N, H, W, C), normalized by their first nodes.

`with_pixel_input` puts four nodes before a graph that takes normalized float32 (N, C, H, W),

    Cast → Transpose → Mul by 1/(255·std) → Add −mean/std

and `without_pixel_input` takes such a beginning off again, also one that another exporter wrote in other scales and
shifts. What changes or quantizes a graph works on the float form; the beginning comes back afterwards.

**INT8.** Pixels are 8-bit values already. To quantize their normalized form again would lose up to half a level and
cost four passes over the image, so the first convolution reads the pixels themselves (`read_pixels`). With
x = a·p + b per channel and a zero point z, which also pads,

    Σ W·x = Σ (W·a)·(p − z) + Σ W·(a·z + b)        both sums over what lies inside the image

The first sum is a convolution of pixels. The second depends on how much of the window is inside: it is the convolution
of one further channel that is constant inside the image and z outside. With z near 255·mean its part is small, as the
means of the channels are near each other. The result is exact, at the border too, where padding with one value for
all channels would not be: it has to be the value that becomes 0 in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeGuard

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.affine import Affine, affine_of
from densenet_deploy.graph.nodes import (
    Double,
    constant,
    is_operator,
    maker,
    new_initializer,
    new_node,
    only_reader,
    set_weight_and_bias,
    spread,
    unused_name,
    weight_and_bias,
)
from densenet_deploy.manifest import Preprocessing

LEVELS: Final = 255
PIXELS: Final = "pixels"
"""What the names of the nodes begin with; `pixels` itself is what the first convolution of an INT8 graph reads."""

_TO_NCHW: Final = (0, 3, 1, 2)
_LEVELS_AS_FLOATS: Final = f"{PIXELS}.levels"
_SIGNED_ZERO: Final = 128  # the zero point that recipes store as int8 around 0
_CLOSE: Final = 1e-5  # roundings of float32
_FIX: Final = "export the network with a float32 input, and then with --input uint8"


# -- float graphs


def takes_pixels(model: onnx.ModelProto) -> bool:
    """Whether the one input of `model` is uint8 with four axes."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.type.tensor_type for value in model.graph.input if value.name not in stored]
    return len(inputs) == 1 and inputs[0].elem_type == onnx.TensorProto.UINT8 and len(inputs[0].shape.dim) == 4


def with_pixel_input(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return `model`, which takes normalized float32 (N, C, H, W), so that it takes pixels.

    >>> with_pixel_input(onnx.load("digits.onnx"), manifest.preprocessing).graph.input[0]     # doctest: +SKIP

    An INT8 graph that `read_pixels` went through reads them without a conversion.
    """
    graph = ir.from_proto(model)
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    pixels, normalized = _new_input(graph.graph), graph.graph.inputs[0]
    graph.graph.inputs[0] = pixels
    levels = next((node for node in graph.graph if node.name == _LEVELS_AS_FLOATS), None)
    if levels is not None:
        _enter_as_levels(graph.graph, pixels, levels, zero_point_of(preprocessing))
    else:
        at = _Place(graph.graph)
        moved = at.moved(at.cast(pixels))
        normalized_again = at.scaled(moved, 1 / (LEVELS * std), -mean / std, "normalize")
        ir.convenience.replace_all_uses_with(normalized, normalized_again)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    return proto


def without_pixel_input(model: onnx.ModelProto, preprocessing: Preprocessing, subject: object) -> onnx.ModelProto:
    """Return `model`, which takes pixels, so that it takes normalized float32 (N, C, H, W).

    Raises:
        ModelFileError: about `subject`, if it does something else to its input before it has float32 values, or
            normalizes by other numbers than those of `preprocessing`.
    """
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    front = pixel_front(graph.graph)
    if front is None or front.dtype != ir.DataType.FLOAT:
        first = next(iter(graph.graph.inputs[0].uses()), None)
        found = "nothing" if first is None else first.node.op_type
        raise ModelFileError(subject, f"takes uint8, and begins with {found} instead of a normalization", _FIX)
    for name, held, stated in (("mean", front.mean, preprocessing.mean), ("std", front.std, preprocessing.std)):
        if not np.allclose(held, stated, rtol=_CLOSE, atol=_CLOSE):
            numbers = " ".join(f"{value:.4g}" for value in held)
            raise ModelFileError(subject, f"normalizes with {name} {numbers}, and states another", "export it again")
    pixels, value = graph.graph.inputs[0], front.normalized
    batch, height, width, channels = pixels.shape if pixels.shape is not None else (None,) * 4
    image = ir.Value(
        name=pixels.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([batch, channels, height, width])
    )
    ir.convenience.replace_all_uses_with(value, image)
    node = value.producer()
    while node is not None:
        source = node.inputs[1] if constant(node.inputs[0]) is not None else node.inputs[0]
        graph.graph.remove(node, safe=True)
        node = source.producer() if source is not None else None
    graph.graph.inputs[0] = image
    RemoveUnusedNodesPass()(graph)
    return ir.to_proto(graph)


@dataclass(frozen=True, eq=False)
class PixelFront:
    """How a graph begins that takes pixels: `normalized` is the value (N, C, H, W) that `affine` makes of them.

    `dtype` is that of its floats.
    """

    normalized: ir.Value
    affine: Affine
    dtype: ir.DataType

    @property
    def mean(self) -> tuple[float, ...]:
        """Of values in 0..1, one per channel or one for all."""
        return tuple(float(value) for value in (0 - self.affine.shift) / self.affine.scale / LEVELS)

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise."""
        return tuple(float(value) for value in 1 / self.affine.scale / LEVELS)


def pixel_front(graph: ir.Graph) -> PixelFront | None:
    """Return how `graph` normalizes pixels (N, H, W, C), or None where that is not a fixed scale and shift.

    Followed are a Cast to floats, one Transpose to (N, C, H, W), and nodes that scale and shift each channel.
    """
    if len(graph.inputs) != 1 or graph.inputs[0].dtype != ir.DataType.UINT8:
        return None
    value, axis, dtype = graph.inputs[0], 3, None
    affine = Affine(value, np.ones(1), np.zeros(1))
    while (node := only_reader(value)) is not None:
        if axis == 3 and is_operator(node, "Transpose") and tuple(node.attributes.get_ints("perm", ())) == _TO_NCHW:
            axis = 1
        elif dtype is None and is_operator(node, "Cast"):
            dtype = ir.DataType(node.attributes.get_int("to", 0))
        elif (found := _fixed_affine(node, axis)) is not None and dtype is not None:
            affine = found.after(affine)
        else:
            break
        value = node.outputs[0]
    return PixelFront(value, affine, dtype) if axis == 1 and _is_float(dtype) and affine.scale.all() else None


def _is_float(dtype: ir.DataType | None) -> TypeGuard[ir.DataType]:
    return dtype is not None and dtype.is_floating_point()


def _fixed_affine(node: ir.Node, axis: int) -> Affine | None:
    """Return a scale and shift that was not learnt: that of a BatchNormalization belongs to the network."""
    return None if is_operator(node, "BatchNormalization") else affine_of(node, axis)


class _Place:
    """Puts nodes at the beginning of a graph, in the order in which they are asked for."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._before = graph, graph[0]

    def cast(self, value: ir.Value) -> ir.Value:
        return self.node("Cast", "cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])

    def moved(self, value: ir.Value) -> ir.Value:
        """Return (N, H, W, C) as (N, C, H, W)."""
        return self.node("Transpose", "transpose", [value], [ir.AttrInt64s("perm", list(_TO_NCHW))])

    def scaled(self, value: ir.Value, scale: Double, shift: Double, name: str) -> ir.Value:
        """Return `scale`·x + `shift`, (C,) each."""
        for op_type, role, numbers in (("Mul", "scale", scale), ("Add", "shift", shift)):
            stored = new_initializer(
                self._graph, f"{PIXELS}.{name}.{role}.value", spread(numbers, 4).swapaxes(0, 1).astype(np.float32)
            )
            value = self.node(op_type, f"{name}.{role}", [value, stored])
        return value

    def padded(self, value: ir.Value, filling: np.generic, name: str = "pad") -> ir.Value:
        """Return `value` with one further channel of `filling`."""
        pads = new_initializer(self._graph, f"{PIXELS}.{name}.sizes", np.array([0] * 5 + [1, 0, 0], np.int64))
        constant_value = new_initializer(self._graph, f"{PIXELS}.{name}.value", filling)
        return self.node("Pad", name, [value, pads, constant_value])

    def node(
        self, op_type: str, name: str, inputs: list[ir.Value], attributes: list[ir.Attr] | None = None
    ) -> ir.Value:
        made = new_node(op_type, f"{PIXELS}.{name}", inputs, attributes or [])
        made.outputs[0].name = unused_name(self._graph, f"{PIXELS}.{name}")
        self._graph.insert_before(self._before, made)
        return made.outputs[0]


def _new_input(graph: ir.Graph) -> ir.Value:
    """Return an input of pixels, not yet in `graph`, under the name of the one that it is to replace."""
    old = graph.inputs[0]
    batch, channels, height, width = old.shape if old.shape is not None else (None,) * 4
    name, old.name = old.name, unused_name(graph, f"{PIXELS}.normalized")
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([batch, height, width, channels]))


# -- INT8 graphs


def zero_point_of(preprocessing: Preprocessing) -> int:
    """Return the level that stands for 0 where a convolution reads pixels, (level − zero point)/255, and that pads."""
    nearest = int(np.clip(np.rint(LEVELS * np.mean(preprocessing.mean)), 0, LEVELS))
    return nearest - (nearest == _SIGNED_ZERO)


def read_pixels(model: ir.Model, preprocessing: Preprocessing) -> str | None:
    """Let the first convolution of a float graph read pixels, in place, which nodes before it make of its input.

    Returns:
        The name of the value that it reads, levels of 1/255 around `zero_point_of`; None where something else than one
        convolution with constant weights reads the input, and nothing was changed.
    """
    graph = model.graph
    image = graph.inputs[0]
    conv = only_reader(image)
    if not is_operator(conv, "Conv") or conv.attributes.get_int("group", 1) != 1:
        return None
    numbers = weight_and_bias(conv)
    if numbers is None:
        return None
    weight, bias = numbers
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    zero_point = zero_point_of(preprocessing)
    zero = zero_point / LEVELS
    scaled = weight / std[:, None, None]
    inside = np.einsum("oihw,i->ohw", weight, (zero - mean) / std)
    filled = _filling(scaled, inside, zero_point) / LEVELS
    widened = np.concatenate([scaled, (inside / filled)[:, None]], axis=1)
    at = _Place(graph)
    levels = at.padded(at.scaled(image, std, mean - zero, "denormalize"), np.float32(filled), "levels")
    levels.dtype = ir.DataType.FLOAT
    if image.shape is not None:
        levels.shape = ir.Shape([image.shape[0], len(mean) + 1, *image.shape[2:]])
    set_weight_and_bias(graph, conv, widened, bias, PIXELS)
    conv.replace_input_with(0, levels)
    return str(levels.name)


def _filling(weights: Double, inside: Double, zero_point: int) -> int:
    """Return the levels above or below the zero point that the further channel holds.

    With few, its weights, `inside`/filling, are as large as the others', so that their rounding, which adds up over the
    whole image, is as small as possible.
    """
    largest = np.abs(weights).max(axis=(1, 2, 3))
    needed = np.abs(inside).max(axis=(1, 2)) / np.where(largest > 0, largest, 1)
    sign, room = (1, LEVELS - zero_point) if zero_point <= LEVELS // 2 else (-1, zero_point)
    return sign * int(np.clip(np.ceil(LEVELS * needed.max()), 1, room))


def _enter_as_levels(graph: ir.Graph, pixels: ir.Value, pad: ir.Node, zero_point: int) -> None:
    """Let `pixels` take the place of what `read_pixels` computes from normalized values, up to the node `pad`."""
    at, quantize = _Place(graph), only_reader(pad.outputs[0])
    add = _maker(pad)
    mul = _maker(add)
    if is_operator(quantize, "QuantizeLinear"):
        filled = constant(pad.inputs[2])
        assert filled is not None
        entered = at.padded(at.moved(pixels), np.uint8(np.rint(float(filled) * LEVELS) + zero_point))
        ir.convenience.replace_all_uses_with(quantize.outputs[0], entered)
        unused = [quantize, pad, add, mul]
    else:  # the first convolution stays float
        one = np.ones(1)
        levels = at.scaled(at.moved(at.cast(pixels)), one / LEVELS, one * -zero_point / LEVELS, "scaled")
        pad.replace_input_with(0, levels)
        unused = [add, mul]
    for node in unused:
        graph.remove(node, safe=True)


def _maker(node: ir.Node) -> ir.Node:
    found = maker(node.inputs[0])
    assert found is not None
    return found

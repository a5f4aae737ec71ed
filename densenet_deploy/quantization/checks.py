"""Check a quantized graph: does every quantizer have an effect, and does the target accept all of it?

Engines accept many faults without an error: a pair without effect costs time and accuracy, a per-channel scale on an
activation makes TensorRT compute in float, an int32 bias at its limit was clipped. The output of a recipe is therefore
checked before it is written; a finding in our own file is our bug.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.graph.layer_precision import layer_precisions

Numbers = npt.NDArray[Any]

_CONVERSIONS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_INTEGER_CAPABLE: Final = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"}
)
_PASS_INTEGERS_ON: Final = _CONVERSIONS | {
    *("Clip", "Flatten", "Identity", "Max", "Min", "Relu", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
}
_SCALES: Final = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
}
_QLINEAR_BIAS: Final = 8
_CLIPPED_BIAS: Final = 2**31 - 128  # where a bias that was clipped in float32 ends


@dataclass(frozen=True)
class Finding:
    """A fault of one node, which is named or, if it has no name, described by its first output."""

    node: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.node} {self.sentence}"


@dataclass(frozen=True)
class ConvolutionCount:
    """The names of the convolutions that compute on integers, and of those that compute on floats, in graph order."""

    integer: tuple[str, ...]
    float: tuple[str, ...]


def check_quantized(model: onnx.ModelProto, recipe: str) -> tuple[Finding, ...]:
    """Return the faults of `model`, written by the recipe called `recipe`.

    Nodes inside subgraphs and functions are not checked.
    """
    graph = _Graph(model)
    checks = (*_ALWAYS, *_TENSORRT) if recipe == "tensorrt" else _ALWAYS
    return tuple(finding for check in checks for finding in check(graph))


def require_sound(model: onnx.ModelProto, recipe: str) -> None:
    """Refuse a quantized `model` of ours that has a fault.

    Raises:
        DensenetDeployError: naming the first fault; it is a bug of ours.
    """
    found = check_quantized(model, recipe)
    if found:
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        raise _our_fault(recipe, f"the node {found[0]}{more}")


def require_float(model: onnx.ModelProto, recipe: str, names: Collection[str]) -> None:
    """Refuse a `model` of ours in which other convolutions than those `names` compute on floats.

    Raises:
        DensenetDeployError: naming the first; it is a bug of ours.
    """
    found = convolutions(model).float
    wrong = [name for name in (*found, *names) if (name in found) != (name in names)]
    if wrong:
        kinds = ("float", "INT8") if wrong[0] in found else ("INT8", "float")
        raise _our_fault(recipe, f"the convolution {wrong[0]} computes in {kinds[0]} and was written as {kinds[1]}")


def _our_fault(recipe: str, why: str) -> DensenetDeployError:
    return DensenetDeployError(f"the graph of the recipe {recipe}", why, "report this with the float model")


def convolutions(model: onnx.ModelProto) -> ConvolutionCount:
    """Separate convolutions on integers from those on floats; see `graph.layer_precision`.

    A recipe may write norms and pools as QLinearConv; those count too.
    """
    found = [layer for layer in layer_precisions(model) if layer.is_convolution]
    integer = tuple(layer.name for layer in found if layer.precision == "int8")
    return ConvolutionCount(integer, tuple(layer.name for layer in found if layer.precision != "int8"))


class _Graph:
    """The makers and readers of values, constants as arrays, and element types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = tuple(graph.node)
        self.outputs = frozenset(value.name for value in graph.output)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._stored |= {node.output[0]: tensor for node in self.nodes for tensor in _value_of(node)}
        self._types = _types(model) | {name: tensor.data_type for name, tensor in self._stored.items()}
        self._useful: dict[str, bool] = {}

    def of(self, *op_types: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in op_types)

    def constant(self, node: onnx.NodeProto, index: int) -> Numbers | None:
        """Return the stored numbers that `node` reads as its input `index`, or None."""
        tensor = self._stored.get(node.input[index]) if len(node.input) > index else None
        return onnx.numpy_helper.to_array(tensor) if tensor is not None else None

    def zero_point(self, node: onnx.NodeProto) -> Numbers | None:
        """Return the zero point of a Q/DQ node, 0 where it has none, or None if it is not a constant."""
        given = len(node.input) > 2 and node.input[2]
        return self.constant(node, 2) if given else np.zeros((), np.int8)

    def type_of(self, value: str) -> int:
        return int(self._types.get(value, onnx.TensorProto.UNDEFINED))

    def is_constant(self, value: str) -> bool:
        """Whether `value` is stored, or made of stored values by Q/DQ nodes."""
        maker = self.makers.get(value)
        converted = maker is not None and maker.op_type in _CONVERSIONS and self.is_constant(maker.input[0])
        return value in self._stored or converted

    def dequantized_inputs(self, conv: onnx.NodeProto) -> int:
        """Return how many of data and weights `conv` reads through DequantizeLinear."""
        makers = (self.makers.get(name) for name in conv.input[:2])
        return sum(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)

    def is_useful(self, value: str) -> bool:
        """Whether `value`, quantized or dequantized, reaches a node that may compute on integers."""
        if value not in self._useful:
            self._useful[value] = any(self._is_useful_to(reader) for reader in self.readers[value])
        return self._useful[value]

    def _is_useful_to(self, reader: onnx.NodeProto) -> bool:
        op = reader.op_type
        if op in _INTEGER_CAPABLE or op.startswith("QLinear") or op.endswith("Integer"):
            return True
        return op in _PASS_INTEGERS_ON and self.is_useful(reader.output[0])


def _value_of(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    if node.op_type == "Constant":
        yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


# -- faults in any file


def _quantizers_without_effect(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear"):
        result = node.output[0]
        if result not in graph.outputs and not graph.is_useful(result):
            yield Finding(_name(node), "quantizes a value for no integer operator: it only rounds")


def _unread_dequantizers(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("DequantizeLinear"):
        if not graph.readers[node.output[0]] and node.output[0] not in graph.outputs:
            yield Finding(_name(node), "dequantizes a value that nothing reads")


def _pairs_without_effect(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear"):
        before = graph.makers.get(node.input[0])
        if before is not None and before.op_type == "DequantizeLinear" and _same_type(graph, before, node):
            yield Finding(_name(node), f"quantizes again what {_name(before)} has just dequantized")


def _same_type(graph: _Graph, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    is_same = graph.type_of(dequantize.input[0]) == graph.type_of(quantize.output[0])
    scales = (graph.constant(dequantize, 1), graph.constant(quantize, 1))
    zero_points = (graph.zero_point(dequantize), graph.zero_point(quantize))
    return is_same and _equal(*scales) and _equal(*zero_points)


def _equal(a: Numbers | None, b: Numbers | None) -> bool:
    """Whether both are known and the same; one number stands for many."""
    return (
        a is not None
        and b is not None
        and (a.size == b.size or 1 in (a.size, b.size))
        and bool((a.ravel() == b.ravel()).all())
    )


def _per_channel_activations(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_CONVERSIONS):
        scales = graph.constant(node, 1)
        if scales is not None and scales.size > 1 and not graph.is_constant(node.input[0]):
            yield Finding(_name(node), f"has {scales.size} scales for an activation, which must have one")


def _impossible_scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_SCALES):
        for index in _SCALES[node.op_type]:
            scales = graph.constant(node, index)
            if scales is not None and not (np.isfinite(scales) & (scales > 0)).all():
                yield Finding(_name(node), f"has a scale, {node.input[index]}, that is not finite and positive")


def _clipped_biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QLinearConv"):
        bias = graph.constant(node, _QLINEAR_BIAS)
        if bias is not None and (np.abs(bias.astype(np.int64)) >= _CLIPPED_BIAS).any():
            yield Finding(_name(node), "has a bias at the limits of int32: it was clipped")


# -- faults in files for TensorRT


def _uint8_values(graph: _Graph) -> Iterator[Finding]:
    """Pixels that enter as uint8 and are cast at once are what TensorRT takes."""
    for node in graph.nodes:
        found = [name for name in (*node.input, *node.output) if graph.type_of(name) == onnx.TensorProto.UINT8]
        if node.op_type == "Cast" and node.input[0] not in graph.makers and list(node.input) == found:
            continue
        if found:
            yield Finding(_name(node), f"reads or writes {found[0]} in uint8, which TensorRT reads as int8")


def _zero_points_off_zero(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*_CONVERSIONS):
        zero_point = graph.zero_point(node)
        if zero_point is None or zero_point.any():
            yield Finding(_name(node), "has a zero point other than the constant 0, the only one that TensorRT accepts")


def _integer_biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("DequantizeLinear"):
        if graph.type_of(node.input[0]) == onnx.TensorProto.INT32:
            yield Finding(_name(node), "dequantizes an int32 bias, which TensorRT refuses: keep biases float")


def _half_quantized_convolutions(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Conv"):
        if graph.dequantized_inputs(node) == 1:
            yield Finding(_name(node), "has quantized data or weights, not both: TensorRT computes it in float")


_Check = Callable[[_Graph], Iterable[Finding]]
_ALWAYS: Final[tuple[_Check, ...]] = (
    _quantizers_without_effect,
    _unread_dequantizers,
    _pairs_without_effect,
    _per_channel_activations,
    _impossible_scales,
    _clipped_biases,
)
_TENSORRT: Final[tuple[_Check, ...]] = (
    _uint8_values,
    _zero_points_off_zero,
    _integer_biases,
    _half_quantized_convolutions,
)

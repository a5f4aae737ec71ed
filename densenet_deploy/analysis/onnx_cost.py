"""Parameters and multiply-accumulates of an ONNX graph, node by node: what the file holds, folded and quantized or not.

Counted are convolutions, matrix products and normalizations, float or integer. Parameters are the stored tensors that
they take as weight, bias, scale or shift, directly or through operators that only change how numbers are written; a
tensor that several nodes share counts once, for the first of them. Each weight is used once per output position, and
those uses are the MACs of one image. A normalization's running statistics, quantization scales and shapes are not
parameters, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.cost import LayerCost, ModelCost
from densenet_deploy.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

Shapes = dict[str, tuple[int | None, ...]]


def _per_pixel(shape: tuple[int, ...]) -> int:
    """Count the pixels of (C, H, W)."""
    return math.prod(shape[1:])


def _per_row(shape: tuple[int, ...]) -> int:
    """Count the rows of (…, C)."""
    return math.prod(shape[:-1])


def _never(_: tuple[int, ...]) -> int:
    return 0


@dataclass(frozen=True)
class _Operator:
    """Which inputs are parameters, the weight first, and how often each weight multiplies for an output of a shape."""

    parameters: tuple[int, ...]
    uses: Callable[[tuple[int, ...]], int]


_OPERATORS: Final = {
    "Conv": _Operator((1, 2), _per_pixel),
    "ConvInteger": _Operator((1,), _per_pixel),
    "QLinearConv": _Operator((3, 8), _per_pixel),
    "Gemm": _Operator((1, 2), _per_row),
    "QGemm": _Operator((3, 6), _per_row),
    "MatMul": _Operator((1,), _per_row),
    "MatMulInteger": _Operator((1,), _per_row),
    "QLinearMatMul": _Operator((3,), _per_row),
    "BatchNormalization": _Operator((1, 2), _never),
}
_REWRITING: Final = ("DequantizeLinear", "Cast", "Identity", "Transpose")

# Operators of ONNX Runtime that onnx's shape inference does not know: the standard operator whose output has the same
# shape, and which of the inputs that one takes.
_STANDARD_TWINS: Final = {
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QGemm": ("Gemm", (0, 3)),
}


def onnx_cost(model: onnx.ModelProto) -> ModelCost:
    """Return the cost of `model` for one image: its nodes as layers, grouped into blocks by their names.

    Raises:
        ModelFileError: if a counted node has no stored weight, or an output of unknown size (the batch may be unknown).
    """
    return ModelCost.of(_layers(model))


def _layers(model: onnx.ModelProto) -> Iterator[LayerCost]:
    shapes, seen = _inferred_shapes(model), set[str]()
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in _REWRITING}
    stored = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if (operator := _OPERATORS.get(node.op_type)) is None:
            continue
        taken = [_stored_name(node.input[index], sources) for index in operator.parameters if index < len(node.input)]
        weight, shape = _weight_count(node, taken[0], stored), _output_shape(node, shapes)
        parameters = sum(stored.get(name, 0) for name in {*taken} - seen)
        seen.update(taken)
        yield LayerCost(_name(node), parameters, weight * operator.uses(shape), shape)


def _weight_count(node: onnx.NodeProto, weight: str, stored: dict[str, int]) -> int:
    if weight not in stored:
        raise ModelFileError(_name(node), "its weight is computed, not stored", "export the model again")
    return stored[weight]


def _stored_name(name: str, sources: dict[str, str]) -> str:
    """Follow `name` back to the tensor that holds its numbers."""
    while name in sources:
        name = sources[name]
    return name


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _output_shape(node: onnx.NodeProto, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the node's first output without the batch."""
    sizes = shapes.get(node.output[0], (None, None))[1:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        raise ModelFileError(_name(node), "the size of its output is not known", "export with a fixed image size")
    return known


def _inferred_shapes(model: onnx.ModelProto) -> Shapes:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(_with_standard_twins(model), data_prop=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {value.name: _shape(value.type.tensor_type) for value in values if value.type.tensor_type.HasField("shape")}


def _shape(tensor_type: onnx.TypeProto.Tensor) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor_type.shape.dim)


def _with_standard_twins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` for shape inference only: it computes other values of the same shapes."""
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for node in twin.graph.node:
        if node.op_type in _STANDARD_TWINS:
            op_type, kept = _STANDARD_TWINS[node.op_type]
            inputs = [node.input[index] for index in kept]
            node.op_type, node.domain = op_type, ""
            node.ClearField("input")
            node.input.extend(inputs)
    return twin

"""Parameters and multiply-accumulates of an ONNX graph, node by node: what the file holds, folded and quantized or not.

Counted are convolutions, matrix products and normalizations, float or integer. Parameters are the stored tensors that
they take as weight, bias, scale or shift, directly or through operators that only change how numbers are written; a
tensor that several nodes share counts once, for the first of them. Each weight is used once per output position, and
those uses are the MACs of one image. A normalization's running statistics, quantization scales and shapes are not
parameters, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.cost import LayerCost, ModelCost
from densenet_deploy.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

Shapes = dict[str, tuple[int | None, ...]]


# Which inputs are parameters, the weight first, and the sizes of the output whose product is the number of its uses.
_PIXELS: Final = slice(1, None)  # of (C, H, W)
_ROWS: Final = slice(None, -1)  # of (…, C)
_OPERATORS: Final[dict[str, tuple[tuple[int, ...], slice | None]]] = {
    "Conv": ((1, 2), _PIXELS),
    "ConvInteger": ((1,), _PIXELS),
    "QLinearConv": ((3, 8), _PIXELS),
    "Gemm": ((1, 2), _ROWS),
    "QGemm": ((3, 6), _ROWS),
    "MatMul": ((1,), _ROWS),
    "MatMulInteger": ((1,), _ROWS),
    "QLinearMatMul": ((3,), _ROWS),
    "BatchNormalization": ((1, 2), None),
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
        if node.op_type not in _OPERATORS:
            continue
        places, uses = _OPERATORS[node.op_type]
        taken = [_stored_name(node.input[index], sources) for index in places if index < len(node.input)]
        weight, shape = _weight_count(node, taken[0], stored), _output_shape(node, shapes)
        parameters = sum(stored.get(name, 0) for name in {*taken} - seen)
        seen.update(taken)
        yield LayerCost(_name(node), parameters, 0 if uses is None else weight * math.prod(shape[uses]), shape)


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
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


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

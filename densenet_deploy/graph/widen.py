"""Write a model with 16-bit floats in float32: the graph that quantization and other casts start from.

Every 16-bit weight is a float32 number too, so none changes. The result computes in float32 what the file computes with
16-bit rounding in between; Casts between the two types then cast float32 to float32, and are removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from densenet_deploy.graph.graph_pass import apply_passes

_NARROW: Final = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FLOAT: Final = ir.DataType.FLOAT
_TYPES: Final = ("to", "dtype", "output_dtype")  # attributes that hold a type


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with float32 in the place of every float16 and bfloat16; inputs and outputs too."""
    copy = ir.from_proto(model)
    for graph in copy.graphs():
        for value in _values(graph):
            if value.dtype in _NARROW:
                value.dtype = _FLOAT
            if value.const_value is not None and value.const_value.dtype in _NARROW:
                value.const_value = _wide(value.const_value)
        for node in graph:
            for attribute in list(node.attributes.values()):
                _widen_attribute(node, attribute)
    ShapeInferencePass()(copy)
    apply_passes(copy, ["remove-identity"])
    proto = ir.to_proto(copy)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    yield from (value for node in graph for value in node.outputs)


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _wide(attribute.as_tensor()))
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPES and attribute.as_int() in _NARROW:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(_FLOAT))


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

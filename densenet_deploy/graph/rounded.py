"""What a machine would compute in 16-bit floats, on one that computes in FP32: the graph with every tensor rounded.

Each stored number is the 16-bit one, written in float32. Behind each node that makes a 16-bit tensor stand two Casts,
to that type and back, so a number beyond the range becomes infinite, as it would. Inside a node numbers are FP32:
that is how tensor cores add up, and it is kinder than a machine that adds in 16 bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import is_operator, unused_name

_HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def rounded(half: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float32 form of `half`, a graph in FP16 or BF16 with float32 inputs and outputs."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(half))
    graph = model.graph
    for value in [value for value in graph.initializers.values() if value.dtype in _HALVES]:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float32)
        value.const_value, value.dtype = ir.tensor(array, name=value.name), ir.DataType.FLOAT
    for node in list(graph):
        for value in [value for value in node.outputs if value.dtype in _HALVES]:
            _round(graph, node, value)
    return ir.to_proto(model)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let the readers of `value` have it rounded to the type that it has, in float32."""
    kind, readers = value.dtype, tuple(value.uses())
    if is_operator(node, "Cast"):
        narrow, new = value, []
    else:
        value.dtype = ir.DataType.FLOAT
        there = _cast(graph, value, kind, f"{value.name}:narrow")
        narrow, new = there.outputs[0], [there]
    back = _cast(graph, narrow, ir.DataType.FLOAT, f"{value.name}:rounded")
    graph.insert_after(node, [*new, back])
    for reader, index in readers:
        reader.replace_input_with(index, back.outputs[0])


def _cast(graph: ir.Graph, value: ir.Value, kind: ir.DataType | None, name: str) -> ir.Node:
    assert kind is not None
    result = ir.Value(name=unused_name(graph, name), type=ir.TensorType(kind), shape=value.shape)
    return ir.node("Cast", [value], {"to": kind}, outputs=[result], name=f"{result.name}.cast")

"""Compute what depends on constants only, once: weights that are made by nodes become stored weights.

Old converters store the shape of a weight and fill it with ConstantOfShape, write the numbers of a norm as (C,) and
unsqueeze them to (C, 1, 1), or keep a weight transposed. Passes and recipes read stored numbers only.

A DequantizeLinear is not computed: it would turn an int8 weight into a float weight of four times its size.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import onnx_ir as ir

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import integers, new_initializer

MOST_ELEMENTS: Final = 2**28
"""The most numbers that one node may fill a tensor with: 1 GiB in float32."""

_FILL: Final = "ConstantOfShape"
_COMPUTED: Final = frozenset(
    {
        *("Add", "Cast", "Concat", _FILL, "Div", "Flatten", "Gather", "Identity", "Mul", "Neg", "Pow", "Reciprocal"),
        *("Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
    }
)


@graph_passes.register("fold-constants")
class FoldConstants(GraphPass):
    """Replace nodes that read constants only by the initializers that they make."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place.

        Raises:
            ModelFileError: if a node fills a tensor of more than 2²⁸ numbers.
        """
        graph = model.graph
        nodes = _constant_nodes(graph)
        computed = [node for node in nodes if node.op_type != "Constant"]
        ends = [value for node in computed for value in node.outputs if _is_read_outside(value, nodes)]
        if not ends:
            return PassOutcome.of(model, ())
        names = [str(node.name or node.outputs[0].name) for node in computed]
        for value, array in zip(ends, _values(model, list(nodes), ends), strict=True):
            _store(graph, value, array)
        graph.remove(reversed(computed), safe=True)
        return PassOutcome.of(model, names)


def _constant_nodes(graph: ir.Graph) -> dict[ir.Node, None]:
    """Return the nodes of `graph`, in execution order, that can be computed, and the Constants."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        if node.domain != "" or any(value.is_graph_output() for value in node.outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        is_known = all(value.producer() in found or _is_stored(value) for value in inputs)
        if node.op_type == "Constant" or (node.op_type in _COMPUTED and is_known and _has_room(node)):
            found[node] = None
    return found


def _is_stored(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


def _has_room(node: ir.Node) -> bool:
    """Whether it is known how many numbers `node` makes, and that memory holds them."""
    if node.op_type != _FILL:
        return True
    shape = integers(node.inputs[0])
    if shape is not None and math.prod(shape) > MOST_ELEMENTS:
        why = f"fills a tensor of {math.prod(shape)} numbers, more than any DenseNet has"
        raise ModelFileError(node.name or node.outputs[0].name, why, "do not trust this file; get it from its author")
    return shape is not None


def _is_read_outside(value: ir.Value, nodes: dict[ir.Node, None]) -> bool:
    return any(use.node not in nodes for use in value.uses())


def _values(model: ir.Model, nodes: list[ir.Node], ends: list[ir.Value]) -> list[npt.NDArray[Any]]:
    """Return the numbers of `ends`, computed by the reference implementation of the operators."""
    graph = onnx.GraphProto(name="constants")
    graph.node.extend(ir.to_proto(node) for node in nodes)
    read = {value.name: value for node in nodes for value in node.inputs if value is not None and _is_stored(value)}
    for name, value in read.items():
        assert value.const_value is not None
        tensor = ir.to_proto(value.const_value)
        tensor.name = str(name)
        graph.initializer.append(tensor)
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in ends)
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    evaluator = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset]))
    return [np.asarray(found) for found in evaluator.run(None, {})]


def _store(graph: ir.Graph, value: ir.Value, array: npt.NDArray[Any]) -> None:
    """Let every reader of `value` read `array`, which takes over its name."""
    name = str(value.name)
    value.name = f"{name}:computed"
    stored = new_initializer(graph, name, array)
    ir.convenience.replace_all_uses_with(value, stored)

"""INT8 for OpenVINO: Q/DQ pairs where values are made, one scale a bus.

Every segment of a dense block is quantized once, where it is produced, with the scale that the whole bus shares; a
Concat of such segments is a copy of codes, and nothing is ever requantized. Each convolution reads what its ReLU left
in unsigned 8 bits, and int8 weights through a DequantizeLinear. That makes L quantizers a block, where a tool that sees
unrelated Concats needs O(L²).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import constant, is_operator, new_initializer
from densenet_deploy.quantize.recipes.recipe import Recipe, RecipeOptions, recipes
from densenet_deploy.quantize.scales import QuantizedType
from densenet_deploy.quantize.weights import quantize_rows


@recipes.register("openvino")
class OpenVINORecipe(Recipe):
    """Q/DQ around the convolutions and on the segments of every bus."""

    def write(self, model: ir.Model, types: Mapping[str, QuantizedType], options: RecipeOptions) -> tuple[str, ...]:
        """Rewrite `model`; see `Recipe.write`."""
        graph = model.graph
        convs = [node for node in graph if _can_be_integer(node, types, options)]
        for value in _quantized_values(graph, convs, types):
            _insert_pair(graph, value, types[str(value.name)])
        for conv in convs:
            _quantize_weights(graph, conv, options)
        return tuple(str(conv.name) for conv in convs)


def _can_be_integer(node: ir.Node, types: Mapping[str, QuantizedType], options: RecipeOptions) -> bool:
    return (
        is_operator(node, "Conv")
        and node.name not in options.float_nodes
        and node.inputs[0] is not None
        and str(node.inputs[0].name) in types
        and constant(node.inputs[1]) is not None
    )


def _quantized_values(
    graph: ir.Graph, convs: Collection[ir.Node], types: Mapping[str, QuantizedType]
) -> list[ir.Value]:
    """What the convolutions read, and the segments of every bus, each once, in a fixed order."""
    read = [conv.inputs[0] for conv in convs]
    concats = [node for node in graph if is_operator(node, "Concat")]
    made_by_concats = {node.outputs[0] for node in concats}
    segments = [value for node in concats for value in node.inputs if value not in made_by_concats]
    values = dict.fromkeys(value for value in (*read, *segments) if value is not None)
    return [value for value in values if str(value.name) in types]


def _insert_pair(graph: ir.Graph, value: ir.Value, given: QuantizedType) -> None:
    """Let every reader of `value` read it through Quantize and Dequantize."""
    readers = tuple(value.uses())
    scale = new_initializer(graph, f"{value.name}.scale", np.float32(given.scale))
    zero_point = new_initializer(graph, f"{value.name}.zero_point", given.code_zero)
    quantize = _node("QuantizeLinear", f"{value.name}:codes", [value, scale, zero_point])
    dequantize = _node("DequantizeLinear", f"{value.name}:quantized", [quantize.outputs[0], scale, zero_point])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for reader, index in readers:
        reader.replace_input_with(index, dequantize.outputs[0])


def _quantize_weights(graph: ir.Graph, conv: ir.Node, options: RecipeOptions) -> None:
    weights = constant(conv.inputs[1])
    assert weights is not None
    codes, scales = quantize_rows(weights.astype(np.float64), bits=options.weight_bits, per_channel=options.per_channel)
    name = str(conv.inputs[1].name)  # type: ignore[union-attr]
    inputs = [
        new_initializer(graph, f"{name}.codes", codes),
        new_initializer(graph, f"{name}.scale", scales),
        new_initializer(graph, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
    ]
    dequantize = _node("DequantizeLinear", f"{name}:quantized", inputs, [ir.AttrInt64("axis", 0)])
    graph.insert_before(conv, dequantize)
    conv.replace_input_with(1, dequantize.outputs[0])


def _node(op_type: str, name: str, inputs: list[ir.Value], attributes: list[ir.Attr] | None = None) -> ir.Node:
    node = ir.Node("", op_type, inputs, attributes or [], name=name, num_outputs=1)
    node.outputs[0].name = name
    return node

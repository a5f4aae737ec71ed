"""What INT8 costs in the form that general tools write: the least that a recipe has to reach.

Every tensor that a convolution, ReLU, norm or Concat reads or makes has one scale of its own, from its smallest to its
largest value, and weights have one per output channel. Nothing is shifted, equalized or corrected, and values are
rounded between any two operators. This is the per-channel Q/DQ form of ONNX Runtime's `quantize_static`, but for sums,
products, gates and the classifier, which stay float here; so it is at least as accurate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import constant, is_operator, new_initializer, new_node
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import read_dequantized_weights
from densenet_deploy.quantization.scales import affine, quantize_rows


def write_baseline(model: ir.Model, ranges: Mapping[str, ChannelRanges], weight_bits: int) -> None:
    """Rewrite `model`, a float graph, in place; every tensor in `ranges` (by name) is quantized.

    >>> write_baseline(model, found.ranges, 8)                                              # doctest: +SKIP
    """
    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    for value in [value for value in (*graph.inputs, *made) if value.name in ranges]:
        _insert_pair(graph, value, ranges[str(value.name)])
    for conv in [node for node in graph if is_operator(node, "Conv")]:
        weights = constant(conv.inputs[1])
        if weights is not None:
            integers, scales = quantize_rows(weights.astype(np.float64), bits=weight_bits)
            read_dequantized_weights(graph, conv, integers, scales, [ir.AttrInt64("axis", 0)])


def _insert_pair(graph: ir.Graph, value: ir.Value, found: ChannelRanges) -> None:
    """Let every reader of `value` read it through Quantize and Dequantize."""
    given, uses, maker = affine(float(found.low.min()), float(found.high.max())), value.uses(), value.producer()
    numbers = [
        new_initializer(graph, f"{value.name}.scale", np.float32(given.scale)),
        new_initializer(graph, f"{value.name}.zero_point", np.uint8(given.zero_point)),
    ]
    quantize = new_node("QuantizeLinear", f"{value.name}:codes", [value, *numbers])
    dequantize = new_node("DequantizeLinear", f"{value.name}:quantized", [quantize.outputs[0], *numbers])
    if maker is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(maker, [quantize, dequantize])
    for use in tuple(uses):
        use.node.replace_input_with(use.idx, dequantize.outputs[0])

"""Bounds of clips that no code can hold.

A clip keeps the type of what it reads, so its bound θ is rounded to a code, and one beyond the last code becomes that
code's value θ'. Where nothing of a channel passes the clip, max(x, θ) with θ above all codes or min(x, θ) with θ below
them, the channel is the constant θ, of which the codes give θ': as far away as θ is. Such channels are those whose ReLU
never opens, and θ = −t/s is as far away as s is small. The convolution that reads them can hold what is missing in its
bias, W·(θ − θ'), also across average pools, which keep a constant. A bound on the other side of the codes cuts nothing
off, and wherever it is put nothing changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.convs import set_bias, weight_and_bias
from densenet_deploy.graph.graph_pass import Double, constant, is_operator, new_initializer, only_reader
from densenet_deploy.quantize.scales import QuantizedType


def hold_bounds(graph: ir.Graph, types: Mapping[str, QuantizedType], float_nodes: Collection[str]) -> None:
    """Move bounds that no code can hold to the last one, and give what is missing to the Conv that reads the clip.

    Args:
        graph: a float graph, changed in place.
        types: by tensor name, how values will be written.
        float_nodes: names of nodes that stay float, whose bounds need no codes.
    """
    for clip in [node for node in graph if is_operator(node, "Max") or is_operator(node, "Min")]:
        given, bounds = types.get(str(clip.outputs[0].name)), constant(clip.inputs[1])
        conv = _reader(clip)
        if given is None or bounds is None or conv is None or clip.name in float_nodes:
            continue
        held = _held(bounds.astype(np.float64), given, clip.op_type)
        missing = (bounds - held).reshape(-1)
        numbers = weight_and_bias(conv)
        if numbers is None or not missing.any() or len(missing) != numbers[0].shape[1]:
            continue
        weight, bias = numbers
        set_bias(graph, conv, bias + weight.sum(axis=(2, 3)) @ missing, "held")
        name = f"{clip.outputs[0].name}.held"
        clip.replace_input_with(1, new_initializer(graph, name, held.astype(np.float32)))


def _reader(clip: ir.Node) -> ir.Node | None:
    """The Conv that alone reads `clip`, through other clips and through pools of whole windows."""
    reader = only_reader(clip.outputs[0])
    while reader is not None and reader.op_type in ("Max", "Min", "AveragePool"):
        reader = only_reader(reader.outputs[0])
    return reader if is_operator(reader, "Conv") else None


def _held(bounds: Double, given: QuantizedType, op_type: str) -> Double:
    """The bounds, those that let nothing pass moved to the last code."""
    if op_type == "Max":
        return np.minimum(bounds, given.highest)
    return np.maximum(bounds, given.lowest)

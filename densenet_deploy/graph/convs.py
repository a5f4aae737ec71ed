"""What a Conv holds, and whether windows reach over the edge: what several rewrites ask of convolutions and pools."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Double, constant, is_operator, new_initializer, only_reader


def pads(node: ir.Node) -> bool:
    """Whether a Conv or pool may add pixels around its input."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()))


def conv_before(node: ir.Node) -> ir.Node | str:
    """Return the Conv whose output `node` alone reads, or a reason why there is none, in words about `node`."""
    conv = node.inputs[0].producer() if node.inputs[0] is not None else None
    if conv is None or not is_operator(conv, "Conv"):
        return f"it follows {conv.op_type if conv else 'an input'}, not a Conv"
    if only_reader(conv.outputs[0]) is not node:
        return f"{conv.name or 'its Conv'} has other readers"
    return conv


def weight_and_bias(conv: ir.Node) -> tuple[Double, Double] | None:
    """Return W (O, I, …) and b (O,) of `conv`, b of zeros where it has none, or None if they are no constants."""
    weight = constant(conv.inputs[1])
    if weight is None:
        return None
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant(conv.inputs[2]) if has_bias else np.zeros(len(weight), np.float32)
    return None if bias is None else (weight.astype(np.float64), bias.astype(np.float64))


def set_weight_and_bias(graph: ir.Graph, conv: ir.Node, weight: Double, bias: Double, role: str) -> None:
    """Let `conv` read new numbers, rounded to float32; `role` goes into their names, which its old weight's begins."""
    stored = _stored(graph, conv, weight, f"{role}.weight")
    set_bias(graph, conv, bias, role)
    conv.replace_input_with(1, stored)


def set_bias(graph: ir.Graph, conv: ir.Node, bias: Double, role: str) -> None:
    """Let `conv` read another bias (O,), named and rounded as `set_weight_and_bias` has it."""
    stored = _stored(graph, conv, bias, f"{role}.bias")
    conv.resize_inputs(max(3, len(conv.inputs)))
    conv.replace_input_with(2, stored)


def _stored(graph: ir.Graph, conv: ir.Node, numbers: Double, ending: str) -> ir.Value:
    weight = conv.inputs[1]
    assert weight is not None
    return new_initializer(graph, f"{str(weight.name).removesuffix('.weight')}.{ending}", numbers.astype(np.float32))

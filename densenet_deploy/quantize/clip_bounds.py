"""Bounds of clips that no code can hold.

A clip keeps the type of what it reads, so its bound θ is rounded to a code, and one beyond the last code becomes that
code's value θ'. Where nothing of a channel passes the clip, max(x, θ) with θ above all codes or min(x, θ) with θ below
them, the channel is the constant θ, of which the codes give θ': as far away as θ is. Such channels are those whose ReLU
never opens, and θ = −t/s is as far away as s is small. The convolution that reads them can hold what is missing in its
bias, W·(θ − θ'), also across average pools, which keep a constant. A bound on the other side of the codes cuts nothing
off, and wherever it is put nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    Double,
    averages_whole_windows,
    constant,
    is_operator,
    new_initializer,
    only_reader,
    pads,
    set_bias,
    weight_and_bias,
)
from densenet_deploy.quantize.scales import QuantizedType


def hold_bound(graph: ir.Graph, clip: ir.Node, given: QuantizedType) -> None:
    """Move bounds that no code can hold to the last one, and give what is missing to the Conv that reads the clip.

    Args:
        graph: the graph of `clip`, still float behind it; changed in place.
        clip: a Max or a Min with a constant.
        given: how the values that it reads and gives are written.
    """
    bounds, (others, conv) = constant(clip.inputs[1]), _behind(clip)
    numbers = weight_and_bias(conv) if conv is not None else None
    if bounds is None or conv is None or numbers is None:
        return
    weight, bias = numbers
    wanted = bounds.astype(np.float64)
    held = np.minimum(wanted, given.highest) if clip.op_type == "Max" else np.maximum(wanted, given.lowest)
    missing = (_clipped(wanted, others) - _clipped(held, others)).reshape(-1)
    if not missing.any() or len(missing) != weight.shape[1]:
        return
    set_bias(graph, conv, bias + weight.sum(axis=(2, 3)) @ missing, "held")
    name = f"{clip.outputs[0].name}.held"
    clip.replace_input_with(1, new_initializer(graph, name, held.astype(np.float32)))


def _behind(clip: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """The clips between `clip` and the Conv that alone reads it, and that Conv; None if a constant may not reach it."""
    clips, reader = [], only_reader(clip.outputs[0])
    while reader is not None and _keeps_constants(reader):
        if reader.op_type != "AveragePool":
            clips.append(reader)
        reader = only_reader(reader.outputs[0])
    return clips, reader if reader is not None and is_operator(reader, "Conv") and not pads(reader) else None


def _keeps_constants(node: ir.Node) -> bool:
    """Whether `node` gives a constant for a constant: a clip, or a pool that averages whole windows."""
    if averages_whole_windows(node):
        return True
    return (is_operator(node, "Max") or is_operator(node, "Min")) and constant(node.inputs[1]) is not None


def _clipped(values: Double, clips: Iterable[ir.Node]) -> Double:
    """What is left of `values` behind `clips`."""
    for clip in clips:
        bounds = constant(clip.inputs[1])
        assert bounds is not None
        values = np.maximum(values, bounds) if clip.op_type == "Max" else np.minimum(values, bounds)
    return values

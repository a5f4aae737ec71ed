"""Write a norm and its ReLU as a clip, and let the 1x1 convolution that follows them do the scaling.

With y = s·x + t and θ = −t/s, channel by channel:

    relu(s·x + t) = s·max(x, θ) + t   where s > 0,
    relu(s·x + t) = s·min(x, θ) + t   where s < 0,
    relu(s·x + t) = relu(t)           where s = 0.

A scale so small that θ is beyond 2⁹⁶ counts as zero: float32 has no s for it, or no θ, and x would have to be some 10²¹
to matter beside t. Trained networks hold such channels: their γ has decayed to 10⁻⁴⁰.

A 1x1 convolution without padding takes s into its weights and W·t into its bias, also across an AveragePool that always
averages whole windows, because averaging commutes with s·x + t. A clip remains before the convolution.

This pays in INT8. The norms of a dense block all read the same bus, each with its own s and t, so each requantizes the
bus to a scale of its own. A clip does not: it works on the quantized values of the bus, and costs a compare instead of
a multiplication and a rounding. Its bound is rounded to a quantized value too, an error of the mean that
`quantization/output_correction.py` corrects. Run it after `equalize-bus`, which handles norms but not clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeGuard

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import (
    Double,
    averages_whole_windows,
    is_operator,
    new_initializer,
    new_node,
    only_reader,
    pads,
    rank_of,
    scale_and_shift,
    set_weight_and_bias,
    spread,
    unused_name,
    weight_and_bias,
    why_not_affine,
)

_FARTHEST: Final = 2.0**96


@dataclass(frozen=True)
class _Chain:
    """A norm, its ReLU, the pools after it if there are any, and the 1x1 convolution that reads the last."""

    norm: ir.Node
    relu: ir.Node
    pools: tuple[ir.Node, ...]
    conv: ir.Node


@graph_passes.register("norm-to-clip")
class NormToClip(NodePass[_Chain]):
    """Rewrite every BatchNormalization and ReLU that only a 1x1 convolution reads."""

    op_type = "BatchNormalization"

    def match(self, node: ir.Node) -> _Chain | str:
        reason = why_not_affine(node)
        if reason is not None:
            return f"it {reason}"
        if rank_of(node.inputs[0]) != 4:
            return "its input is not known to have four axes"
        relu = only_reader(node.outputs[0])
        if not is_operator(relu, "Relu"):
            return "its only reader is not a Relu"
        pools, reader = _pools_after(relu)
        if not _mixes_channels_only(reader):
            return "its Relu is not read only by an unpadded 1x1 Conv"
        return _Chain(node, relu, pools, reader)

    def rewrite(self, found: _Chain, edit: Edit) -> None:
        scale, shift = scale_and_shift(found.norm)
        scale = np.where(np.abs(scale) * _FARTHEST < np.abs(shift), 0, scale)
        result = found.relu.outputs[0]
        clipped = _clip(edit.graph, found, scale, shift)
        _absorb(edit.graph, found.conv, scale, np.where(scale == 0, np.maximum(shift, 0), shift))
        _record(found, clipped, edit)
        ir.convenience.replace_all_uses_with(result, clipped)
        edit.graph.remove([found.relu, found.norm], safe=True)


def _pools_after(relu: ir.Node) -> tuple[tuple[ir.Node, ...], ir.Node | None]:
    """Return the chain of pools that alone reads `relu`, and the one node that reads the last."""
    pools: list[ir.Node] = []
    reader = only_reader(relu.outputs[0])
    while averages_whole_windows(reader):
        pools.append(reader)
        reader = only_reader(reader.outputs[0])
    return tuple(pools), reader


def _mixes_channels_only(node: ir.Node | None) -> TypeGuard[ir.Node]:
    return (
        is_operator(node, "Conv")
        and node.attributes.get_int("group", 1) == 1
        and not pads(node)
        and (numbers := weight_and_bias(node)) is not None
        and numbers[0].shape[2:] == (1, 1)
    )


def _clip(graph: ir.Graph, chain: _Chain, scale: Double, shift: Double) -> ir.Value:
    """Insert the Max and the Min that the channels need, in the place of the norm."""
    largest = np.finfo(np.float32).max
    threshold = -shift / np.where(scale == 0, 1, scale)
    value, result = chain.norm.inputs[0], chain.relu.outputs[0]
    assert value is not None
    name = chain.relu.name or str(result.name)
    for op_type, used, unused in (("Max", scale > 0, -largest), ("Min", scale < 0, largest)):
        if used.any():
            bounds = spread(np.where(used, threshold, unused), 3).astype(np.float32)
            bound = new_initializer(graph, f"{name}.{op_type.lower()}", bounds)
            node = new_node(op_type, f"{name}.{op_type.lower()}", [value, bound])
            node.outputs[0].name = unused_name(graph, f"{result.name}:{op_type.lower()}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.insert_before(chain.norm, node)
            value = node.outputs[0]
    return value


def _absorb(graph: ir.Graph, conv: ir.Node, scale: Double, shift: Double) -> None:
    """Let `conv` read x where it read scale·x + shift."""
    numbers = weight_and_bias(conv)
    assert numbers is not None
    weight, bias = numbers
    mixing = weight[:, :, 0, 0]
    set_weight_and_bias(graph, conv, (mixing * scale)[:, :, None, None], bias + mixing @ shift, "absorbed")


def _record(chain: _Chain, clipped: ir.Value, edit: Edit) -> None:
    """Record what `clipped` and the pooled clips represent, and rename the outputs of the pools."""
    why = "clipped before a scale and shift that the next Conv absorbed"
    if clipped is not chain.norm.inputs[0]:  # as where no channel needs a bound
        edit.changes.move(str(clipped.name), str(chain.relu.outputs[0].name), why)
    for pool in chain.pools:
        origin = str(pool.outputs[0].name)
        pool.outputs[0].name = unused_name(edit.graph, f"{origin}:clipped")
        edit.changes.move(str(pool.outputs[0].name), origin, why)

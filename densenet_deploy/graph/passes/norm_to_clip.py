"""Write a norm and its ReLU as a clip, and let the 1x1 convolution behind them do the scaling.

With y = s·x + t and θ = −t/s, channel by channel:

    relu(s·x + t) = s·max(x, θ) + t   where s > 0,
    relu(s·x + t) = s·min(x, θ) + t   where s < 0,
    relu(s·x + t) = relu(t)           where s = 0.

A 1x1 convolution without padding takes s into its weights and W·t into its bias, also across an AveragePool that always
averages whole windows, because averaging keeps s·x + t as it is. What is left before the convolution is a clip.

That is what makes it worth doing in INT8. The norms of a dense block all read the same bus, each with its own s and t,
so each has to requantize the bus to codes of its own. A clip does not: it works on the codes of the bus itself, and
costs a compare instead of a multiplication and a rounding. Its bound is rounded to a code too, an error of the mean
that `quantize/output_correction.py` takes back. Run it after `equalize-bus`, which knows norms but no clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.channels import rank_of
from densenet_deploy.graph.graph_pass import (
    GraphPass,
    PassOutcome,
    constant,
    graph_passes,
    is_operator,
    new_initializer,
    only_reader,
    unused_name,
)
from densenet_deploy.graph.norms import Double, scale_and_shift, why_no_affine
from densenet_deploy.graph.tensor_changes import TensorChanges


@dataclass(frozen=True)
class _Chain:
    """A norm, its ReLU, the pools behind it if there are any, and the 1x1 convolution that reads the last."""

    norm: ir.Node
    relu: ir.Node
    pools: tuple[ir.Node, ...]
    conv: ir.Node


@graph_passes.register("norm-to-clip")
class NormToClip(GraphPass):
    """Rewrite every BatchNormalization and ReLU that a 1x1 convolution alone reads."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        changes = TensorChanges.of(model)
        rewritten, skipped = [], []
        for norm in [node for node in model.graph if is_operator(node, "BatchNormalization")]:
            chain = _chain(norm)
            if isinstance(chain, str):
                skipped.append(f"{norm.name or norm.op_type}: {chain}")
                continue
            rewritten.append(norm.name or norm.op_type)
            _rewrite(model.graph, chain, changes)
        changes.write_to(model)
        return PassOutcome.of(model, rewritten, skipped)


def _chain(norm: ir.Node) -> _Chain | str:
    """Return what follows `norm`, or a reason why it stays as it is."""
    reason = why_no_affine(norm)
    if reason is not None or rank_of(norm.inputs[0]) != 4:
        return reason or "nothing says that it reads images"
    relu = only_reader(norm.outputs[0])
    if relu is None or not is_operator(relu, "Relu"):
        return "it is not read by a Relu alone"
    pools: list[ir.Node] = []
    reader = only_reader(relu.outputs[0])
    while reader is not None and is_operator(reader, "AveragePool") and _averages_whole_windows(reader):
        pools.append(reader)
        reader = only_reader(reader.outputs[0])
    if reader is None or not _mixes_pixels_alone(reader):
        return "it is not read by an unpadded 1x1 Conv alone"
    return _Chain(norm, relu, tuple(pools), reader)


def _averages_whole_windows(pool: ir.Node) -> bool:
    return pool.attributes.get_int("ceil_mode", 0) == 0 and not _pads(pool)


def _mixes_pixels_alone(node: ir.Node) -> bool:
    if not is_operator(node, "Conv") or node.attributes.get_int("group", 1) != 1 or _pads(node):
        return False
    weight = constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    is_known = weight is not None and weight.shape[2:] == (1, 1)
    return is_known and (not has_bias or constant(node.inputs[2]) is not None)


def _pads(node: ir.Node) -> bool:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()))


def _rewrite(graph: ir.Graph, chain: _Chain, changes: TensorChanges) -> None:
    scale, shift = scale_and_shift(chain.norm)
    source, result = chain.norm.inputs[0], chain.relu.outputs[0]
    assert source is not None
    clipped = _clip(graph, chain, source, scale, shift)
    _absorb(graph, chain.conv, scale, np.where(scale == 0, np.maximum(shift, 0), shift))
    why = "clipped before a scale and shift that the next Conv absorbed"
    changes.move(str(clipped.name), str(result.name), why)
    for pool in chain.pools:
        origin = str(pool.outputs[0].name)
        pool.outputs[0].name = unused_name(graph, f"{origin}:clipped")
        changes.move(str(pool.outputs[0].name), origin, why)
    ir.convenience.replace_all_uses_with(result, clipped)
    graph.remove([chain.relu, chain.norm], safe=True)


def _clip(graph: ir.Graph, chain: _Chain, value: ir.Value, scale: Double, shift: Double) -> ir.Value:
    """Insert the Max and the Min that channels need, in the place of the norm."""
    largest = np.finfo(np.float32).max
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        threshold = np.clip(-shift / scale, -largest, largest)
    name = chain.relu.name or str(chain.relu.outputs[0].name)
    for op_type, used, unused in (("Max", scale > 0, -largest), ("Min", scale < 0, largest)):
        if used.any():
            bounds = np.where(used, threshold, unused).astype(np.float32).reshape(-1, 1, 1)
            bound = new_initializer(graph, f"{name}.{op_type.lower()}", bounds)
            node = ir.Node("", op_type, [value, bound], name=f"{name}.{op_type.lower()}", num_outputs=1)
            node.outputs[0].name = unused_name(graph, f"{chain.relu.outputs[0].name}:{op_type.lower()}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.insert_before(chain.norm, node)
            value = node.outputs[0]
    return value


def _absorb(graph: ir.Graph, conv: ir.Node, scale: Double, shift: Double) -> None:
    """Let `conv` read x where it read scale·x + shift."""
    weight = constant(conv.inputs[1])
    assert weight is not None
    mixing = weight.astype(np.float64)[:, :, 0, 0]
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros(len(weight))
    assert bias is not None
    stem = str(conv.inputs[1].name).removesuffix(".weight")  # type: ignore[union-attr]
    scaled = (mixing * scale)[:, :, None, None].astype(np.float32)
    conv.replace_input_with(1, new_initializer(graph, f"{stem}.absorbed.weight", scaled))
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    shifted = (bias + mixing @ shift).astype(np.float32)
    conv.replace_input_with(2, new_initializer(graph, f"{stem}.absorbed.bias", shifted))

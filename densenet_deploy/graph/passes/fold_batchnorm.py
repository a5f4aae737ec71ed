"""Fold BatchNormalization into the Conv before it.

A convolution followed by y = γ·(x − μ)/σ + β, σ = √(var + ε), is a convolution with

    W' = W · γ/σ  (per output channel),   b' = (b − μ)·γ/σ + β,

computed here in float64 and rounded once. A norm is skipped if it follows anything else (the Concat of a dense block),
a Conv with another reader, or one with numbers that are not constants. The Conv's output takes the norm's name, since
it now holds the output of the norm.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import (
    conv_before,
    scale_and_shift,
    set_weight_and_bias,
    spread,
    take_over_output,
    weight_and_bias,
    why_not_affine,
)


class _Pair(NamedTuple):
    """A Conv and the norm that is its only reader."""

    conv: ir.Node
    norm: ir.Node


@graph_passes.register("fold-batchnorm")
class FoldBatchNorm(NodePass[_Pair]):
    """Fold every BatchNormalization that is the only reader of a Conv."""

    op_type = "BatchNormalization"

    def match(self, node: ir.Node) -> _Pair | str:
        conv = conv_before(node)
        if isinstance(conv, str):
            return conv
        if weight_and_bias(conv) is None:
            return "the numbers of its Conv are not float32 constants"
        reason = why_not_affine(node)
        return _Pair(conv, node) if reason is None else f"it {reason}"

    def rewrite(self, found: _Pair, edit: Edit) -> None:
        conv, norm = found
        numbers = weight_and_bias(conv)
        assert numbers is not None
        weight, bias = numbers
        scale, shift = scale_and_shift(norm)
        folded = weight * spread(scale, weight.ndim)
        set_weight_and_bias(edit.graph, conv, folded, bias * scale + shift, "folded")
        take_over_output(conv, norm.outputs[0])

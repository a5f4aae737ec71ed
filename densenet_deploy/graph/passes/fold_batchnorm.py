"""Fold BatchNormalization into the Conv before it.

A convolution followed by y = γ·(x − μ)/σ + β, σ = √(var + ε), is a convolution with

    W' = W · γ/σ  (per output channel),   b' = (b − μ)·γ/σ + β,

computed here in float64 and rounded once. A norm that follows anything else (the Concat of a dense block), whose Conv
has another reader, or whose numbers are not constants is left alone. The Conv's output takes the norm's name, since it
now holds what the norm gave.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import (
    GraphPass,
    PassOutcome,
    constant,
    graph_passes,
    is_operator,
    new_initializer,
    only_reader,
    take_over_output,
)
from densenet_deploy.graph.norms import scale_and_shift, why_no_affine


@graph_passes.register("fold-batchnorm")
class FoldBatchNorm(GraphPass):
    """Fold every BatchNormalization that alone reads a Conv."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        folded, skipped = [], []
        for norm in [node for node in model.graph if is_operator(node, "BatchNormalization")]:
            reason = _why_not(norm)
            if reason is not None:
                skipped.append(f"{norm.name or norm.op_type}: {reason}")
                continue
            folded.append(norm.name or "BatchNormalization")
            _fold(model.graph, norm)
        return PassOutcome.of(model, folded, skipped)


def _why_not(norm: ir.Node) -> str | None:
    """Say why `norm` cannot be folded, or None if it can."""
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if conv is None or not is_operator(conv, "Conv"):
        return f"it follows {conv.op_type if conv else 'an input'}, not a Conv"
    if only_reader(conv.outputs[0]) is not norm:
        return f"{conv.name or 'its Conv'} has other readers"
    if any(constant(value) is None for value in (conv.inputs[1], *_bias(conv))):
        return "the numbers of its Conv are not float32 constants"
    return why_no_affine(norm)


def _bias(conv: ir.Node) -> tuple[ir.Value, ...]:
    """The bias of `conv`, or nothing where it has none."""
    return tuple(value for value in conv.inputs[2:] if value is not None)


def _fold(graph: ir.Graph, norm: ir.Node) -> None:
    conv = norm.inputs[0].producer()  # type: ignore[union-attr]
    assert conv is not None
    weight = _float64(conv.inputs[1])
    bias = sum((_float64(value) for value in _bias(conv)), np.zeros(len(weight)))
    scale, shift = scale_and_shift(norm)

    weight_name = str(conv.inputs[1].name)  # type: ignore[union-attr]
    stem = weight_name.removesuffix(".weight")
    new_weight = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    new_bias = (bias * scale + shift).astype(np.float32)
    conv.replace_input_with(1, new_initializer(graph, f"{stem}.folded.weight", new_weight))
    _set_bias(conv, new_initializer(graph, f"{stem}.folded.bias", new_bias))
    take_over_output(conv, norm.outputs[0])


def _float64(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)


def _set_bias(conv: ir.Node, bias: ir.Value) -> None:
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, bias)

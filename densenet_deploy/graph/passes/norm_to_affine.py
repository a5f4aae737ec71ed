"""Write BatchNormalization as one scale and one shift a channel: y = x·s + t, s = γ/√(var + ε), t = β − μ·s.

A norm that follows the Concat of a dense block cannot be folded into a convolution, and some targets fuse or quantize a
Mul and an Add where they leave a BatchNormalization alone. The numbers are computed in float64 and rounded once. Run
`fold-batchnorm` first: this pass takes every norm that is left.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.channels import rank_of
from densenet_deploy.graph.graph_pass import (
    GraphPass,
    PassOutcome,
    graph_passes,
    is_operator,
    new_initializer,
    take_over_output,
    unused_name,
)
from densenet_deploy.graph.norms import scale_and_shift, why_no_affine


@graph_passes.register("norm-to-affine")
class NormToAffine(GraphPass):
    """Replace every BatchNormalization of constant numbers by a Mul and an Add."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        rewritten, skipped = [], []
        for norm in [node for node in model.graph if is_operator(node, "BatchNormalization")]:
            reason = _why_not(norm)
            if reason is not None:
                skipped.append(f"{norm.name or norm.op_type}: {reason}")
                continue
            rewritten.append(norm.name or norm.op_type)
            _rewrite(model.graph, norm)
        return PassOutcome.of(model, rewritten, skipped)


def _why_not(norm: ir.Node) -> str | None:
    """Say why `norm` stays, or None if it can be written as scale and shift."""
    reason = why_no_affine(norm)
    if reason is None and rank_of(norm.inputs[0]) is None:
        return "nothing says how many axes its input has"
    return reason


def _rewrite(graph: ir.Graph, norm: ir.Node) -> None:
    source, result = norm.inputs[0], norm.outputs[0]
    rank, name = rank_of(source), norm.name or result.name
    assert rank is not None
    scale, shift = (array.astype(np.float32).reshape(-1, *[1] * (rank - 2)) for array in scale_and_shift(norm))
    product = ir.Value(name=unused_name(graph, f"{result.name}:product"), type=result.type, shape=result.shape)
    factors = [source, new_initializer(graph, f"{name}.scale", scale)]
    mul = ir.Node("", "Mul", factors, outputs=[product], name=f"{name}.mul")
    add = ir.Node("", "Add", [product, new_initializer(graph, f"{name}.shift", shift)], name=norm.name)
    graph.insert_before(norm, [mul, add])
    take_over_output(add, result)

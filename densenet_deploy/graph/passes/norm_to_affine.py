"""Write BatchNormalization as one scale and one shift per channel: y = x·s + t, s = γ/√(var + ε), t = β − μ·s.

A norm that follows the Concat of a dense block cannot be folded into a convolution, and some targets fuse or quantize a
Mul and an Add but not a BatchNormalization. The numbers are computed in float64 and rounded once. Run
`fold-batchnorm` first: this pass takes all remaining norms.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import (
    new_initializer,
    rank_of,
    scale_and_shift,
    spread,
    take_over_output,
    unused_name,
    why_not_affine,
)


@graph_passes.register("norm-to-affine")
class NormToAffine(NodePass[ir.Node]):
    """Replace every BatchNormalization of constant numbers by a Mul and an Add."""

    op_type = "BatchNormalization"

    def match(self, node: ir.Node) -> ir.Node | str:
        reason = why_not_affine(node)
        if reason is not None:
            return f"it {reason}"
        return "the number of axes of its input is unknown" if rank_of(node.inputs[0]) is None else node

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        graph, source, result = edit.graph, found.inputs[0], found.outputs[0]
        rank, name = rank_of(source), found.name or result.name
        assert rank is not None
        scale, shift = (spread(array, rank - 1).astype(np.float32) for array in scale_and_shift(found))
        product = ir.Value(name=unused_name(graph, f"{result.name}:product"), type=result.type, shape=result.shape)
        factors = [source, new_initializer(graph, f"{name}.scale", scale)]
        mul = ir.Node("", "Mul", factors, outputs=[product], name=f"{name}.mul")
        add = ir.Node("", "Add", [product, new_initializer(graph, f"{name}.shift", shift)], name=found.name)
        graph.insert_before(found, [mul, add])
        take_over_output(add, result)

"""Remove Concats of a single input: concatenating one tensor is that tensor (DenseNet's first layer of each block)."""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes, is_operator


@graph_passes.register("remove-single-concat")
class RemoveSingleConcat(GraphPass):
    """Let the readers of a one-input Concat read that input."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        removed, skipped = [], []
        for node in [node for node in model.graph if is_operator(node, "Concat") and len(node.inputs) == 1]:
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            if result.is_graph_output():
                skipped.append(f"{node.name or node.op_type}: its output leaves the graph")
                continue
            removed.append(node.name or "Concat")
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)
        return PassOutcome.of(model, removed, skipped)

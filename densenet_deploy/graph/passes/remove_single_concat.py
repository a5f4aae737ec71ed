"""Remove Concats of a single input: concatenating one tensor is that tensor (DenseNet's first layer of each block)."""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes


@graph_passes.register("remove-single-concat")
class RemoveSingleConcat(NodePass[ir.Node]):
    """Let the readers of a one-input Concat read that input."""

    op_type = "Concat"

    def concerns(self, node: ir.Node) -> bool:
        return super().concerns(node) and len(node.inputs) == 1

    def match(self, node: ir.Node) -> ir.Node | str:
        return "its output leaves the graph" if node.outputs[0].is_graph_output() else node

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        source = found.inputs[0]
        assert source is not None
        ir.convenience.replace_all_uses_with(found.outputs[0], source)
        edit.graph.remove(found, safe=True)

"""Remove nodes that hand their input on: Identity, Dropout in inference, a Pad of nothing, a Cast to the same type."""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import integers, is_operator, only_reader, take_over_output


@graph_passes.register("remove-identity")
class RemoveIdentity(NodePass[ir.Node]):
    """Let the readers of every such node read its input."""

    op_type = "Identity"

    def concerns(self, node: ir.Node) -> bool:
        return (
            super().concerns(node)
            or (is_operator(node, "Dropout") and len(node.inputs) < 3)
            or (is_operator(node, "Pad") and _adds_nothing(node))
            or (is_operator(node, "Cast") and _keeps_type(node))
        )

    def match(self, node: ir.Node) -> ir.Node | str:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return "its mask is read"
        if not result.is_graph_output():
            return node
        maker = source.producer()
        is_free = maker is not None and len(maker.outputs) == 1 and only_reader(source) is node
        return node if is_free else "its output leaves the graph"

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        source, result = found.inputs[0], found.outputs[0]
        assert source is not None
        if result.is_graph_output():
            maker = source.producer()
            assert maker is not None
            take_over_output(maker, result)
            return
        ir.convenience.replace_all_uses_with(result, source)
        edit.graph.remove(found, safe=True)


def _adds_nothing(pad: ir.Node) -> bool:
    amounts = integers(pad.inputs[1]) if len(pad.inputs) > 1 else None
    return amounts is not None and not any(amounts)


def _keeps_type(cast: ir.Node) -> bool:
    source = cast.inputs[0]
    return source is not None and source.dtype is not None and source.dtype == cast.attributes.get_int("to", 0)

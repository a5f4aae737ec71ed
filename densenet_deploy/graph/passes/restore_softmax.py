"""Undo what lifting a Softmax to operator set 13 puts around it, where it changes nothing.

Before operator set 13 a Softmax with axis 1 ran over everything after the batch at once. The converter of the onnx
package writes that as Flatten, Softmax, and a Reshape to the Shape of the input. Of (N, C) or (N, C, 1, 1) this is a
Softmax over axis 1.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import is_operator, maker, new_node, only_reader, rank_of, take_over_output


class _Found(NamedTuple):
    """The Softmax, what the Flatten before it reads, and the Reshape after it."""

    softmax: ir.Node
    source: ir.Value
    reshape: ir.Node


@graph_passes.register("restore-softmax")
class RestoreSoftmax(NodePass[_Found]):
    """Replace every Flatten, Softmax and Reshape to the shape before by a Softmax over axis 1."""

    op_type = "Softmax"

    def concerns(self, node: ir.Node) -> bool:
        return super().concerns(node) or is_operator(node, "LogSoftmax")

    def match(self, node: ir.Node) -> _Found | str:
        flatten = maker(node.inputs[0])
        reshape = only_reader(node.outputs[0])
        if not is_operator(flatten, "Flatten") or not is_operator(reshape, "Reshape"):
            return "it does not stand between a Flatten and a Reshape"
        source, shape = flatten.inputs[0], maker(reshape.inputs[1])
        if source is None or not is_operator(shape, "Shape") or shape.inputs[0] is not source:
            return "its Reshape does not restore the shape before the Flatten"
        if flatten.attributes.get_int("axis", 1) != 1 or node.attributes.get_int("axis", -1) not in (1, -1):
            return "it does not run over everything after the batch"
        is_row = rank_of(source) == 2 or (source.shape is not None and set(source.shape[2:]) == {1})
        return _Found(node, source, reshape) if is_row else "it is not known to read scores (N, C) or (N, C, 1, 1)"

    def rewrite(self, found: _Found, edit: Edit) -> None:
        result = found.reshape.outputs[0]
        name = str(found.softmax.name or result.name)
        softmax = new_node(found.softmax.op_type, name, [found.source], [ir.AttrInt64("axis", 1)])
        edit.graph.insert_before(found.reshape, softmax)
        take_over_output(softmax, result)

"""Write `x.view(x.size(0), -1)`, which exporters translate into Shape, Gather, Concat and Reshape, as one Flatten.

So is a Reshape to constants that keeps the batch: [0, −1], [−1, C·H·W], or [N, −1] where the batch is fixed to N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import integers, is_operator, maker, new_node, take_over_output

_KEEPS_BATCH: Final = frozenset(
    {
        *("AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Dropout", "Flatten"),
        *("GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Relu", "Sigmoid"),
    }
)


@graph_passes.register("reshape-to-flatten")
class ReshapeToFlatten(NodePass[ir.Node]):
    """Replace every Reshape to (N, −1) by a Flatten."""

    op_type = "Reshape"

    def match(self, node: ir.Node) -> ir.Node | str:
        if node.attributes.get_int("allowzero", 0) != 0 and 0 in (integers(node.inputs[1]) or (0,)):
            return "a zero in its shape means zero"
        return node if _keeps_batch_only(node) else "it is not known to keep the batch and flatten the rest"

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        source, result = found.inputs[0], found.outputs[0]
        assert source is not None
        flatten = new_node("Flatten", str(found.name or result.name), [source], [ir.AttrInt64("axis", 1)])
        edit.graph.insert_before(found, flatten)
        take_over_output(flatten, result)


def _keeps_batch_only(reshape: ir.Node) -> bool:
    """Whether `reshape` makes (N, …) of (N, C, …) with one number after N, which can then only be the product."""
    source, target = reshape.inputs
    assert source is not None
    if (sizes := integers(target)) is not None:
        batch, rest = _batch_and_rest(source.shape)
        return len(sizes) == 2 and (sizes[0] in (0, batch) or (sizes[0] == -1 and sizes[1] == rest))
    concat = maker(target)
    if not is_operator(concat, "Concat") or len(concat.inputs) != 2:
        return False
    last = integers(concat.inputs[1])
    return last is not None and len(last) == 1 and _is_batch(concat.inputs[0], source)


def _batch_and_rest(shape: ir.Shape | None) -> tuple[int | None, int | None]:
    """Return the size of the first axis and the product of the others, each None where it is not a number."""
    first, *others = shape or (None,)
    known = [size for size in others if isinstance(size, int)]
    rest = math.prod(known) if others and len(known) == len(others) else None
    return first if isinstance(first, int) else None, rest


def _is_batch(value: ir.Value | None, tensor: ir.Value) -> bool:
    """Whether `value` is computed as the first number of the shape of `tensor`, or of what `tensor` is made of."""
    node = maker(value)
    if is_operator(node, "Unsqueeze") or is_operator(node, "Reshape"):
        node = maker(node.inputs[0])
    if is_operator(node, "Slice"):
        is_first = integers(node.inputs[1]) == (0,) and integers(node.inputs[2]) == (1,)
    else:
        is_first = is_operator(node, "Gather") and integers(node.inputs[1]) == (0,)
    shape = maker(node.inputs[0]) if is_first and node is not None else None
    return is_operator(shape, "Shape") and any(value is shape.inputs[0] for value in _with_same_batch(tensor))


def _with_same_batch(tensor: ir.Value | None) -> Iterator[ir.Value]:
    """Yield `tensor` and what it is made of, as far back as every node keeps the batch."""
    while tensor is not None:
        yield tensor
        node = tensor.producer()
        tensor = node.inputs[0] if node is not None and node.domain == "" and node.op_type in _KEEPS_BATCH else None

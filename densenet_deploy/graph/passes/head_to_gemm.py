"""Write a linear head as one Gemm, whatever it is written as.

* MatMul, and an Add of a bias after it: x·W + b.
* A 1x1 Conv on pooled features (N, C, 1, 1), as Caffe writes it: Flatten, Gemm with Wᵀ, and an Unsqueeze that gives the
  scores back their (N, classes, 1, 1). Only the last Conv of a graph is one: those of squeeze-and-excitation stay.

Recipes keep a Gemm at the end in float, and it corrects what quantization changed before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import (
    constant,
    is_operator,
    new_initializer,
    new_node,
    only_reader,
    pads,
    rank_of,
    take_over_output,
    unused_name,
    weight_and_bias,
)

_ENDING: Final = frozenset(
    {"Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Unsqueeze"}
)
_POOLS: Final = ("GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True)
class _Head:
    """A MatMul or Conv, and the Add after it if there is one."""

    node: ir.Node
    add: ir.Node | None = None


@graph_passes.register("head-to-gemm")
class HeadToGemm(NodePass[_Head]):
    """Replace MatMul and Add, or the Conv at the end of the graph, by a Gemm."""

    op_type = "MatMul"

    def concerns(self, node: ir.Node) -> bool:
        return super().concerns(node) or (is_operator(node, "Conv") and _leaves(node.outputs[0]))

    def match(self, node: ir.Node) -> _Head | str:
        weight = constant(node.inputs[1])
        if weight is None:
            return "its weights are not float32 constants"
        if is_operator(node, "Conv"):
            return _why_not_dense(node) or _Head(node)
        if weight.ndim != 2 or rank_of(node.inputs[0]) != 2:
            return "it does not multiply rows by a matrix"
        add = only_reader(node.outputs[0])
        return _Head(node, add if _bias_of(add, weight.shape[1]) is not None else None)

    def rewrite(self, found: _Head, edit: Edit) -> None:
        if is_operator(found.node, "Conv"):
            _rewrite_conv(edit.graph, found.node)
        else:
            _rewrite_product(edit.graph, found)


def _leaves(value: ir.Value) -> bool:
    """Whether `value` leaves the graph, with nothing but an activation or another shape on the way."""
    while not value.is_graph_output():
        reader = only_reader(value)
        if reader is None or reader.domain != "" or reader.op_type not in _ENDING:
            return False
        value = reader.outputs[0]
    return True


def _why_not_dense(conv: ir.Node) -> str | None:
    numbers = weight_and_bias(conv)
    if numbers is None or numbers[0].shape[2:] != (1, 1):
        return "it is not a 1x1 Conv of float32 constants"
    if conv.attributes.get_int("group", 1) != 1 or pads(conv):
        return "it pads, or has groups"
    source = conv.inputs[0]
    assert source is not None
    is_pooled = any(is_operator(source.producer(), pool) for pool in _POOLS)
    is_one_pixel = source.shape is not None and list(source.shape)[2:] == [1, 1]
    return None if is_pooled or is_one_pixel else "it is not known to read one pixel"


def _bias_of(add: ir.Node | None, classes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """Return what `add`, the reader of a product, adds to each row, (classes,), or None."""
    if not is_operator(add, "Add"):
        return None
    found = next((array for array in map(constant, add.inputs) if array is not None), None)
    return None if found is None or found.size != classes or found.shape[-1] != classes else found.reshape(classes)


def _rewrite_product(graph: ir.Graph, head: _Head) -> None:
    source, weight = head.node.inputs
    assert source is not None
    assert weight is not None
    last, inputs = head.node, [source, weight]
    if head.add is not None and weight.shape is not None:
        bias = _bias_of(head.add, int(weight.shape[1]))  # type: ignore[arg-type]  # a constant's
        assert bias is not None
        last, inputs = head.add, [*inputs, new_initializer(graph, f"{weight.name}.bias", bias)]
    gemm = new_node("Gemm", str(head.node.name or last.outputs[0].name), inputs)
    graph.insert_before(last, gemm)
    take_over_output(gemm, last.outputs[0])
    if last is not head.node:
        graph.remove(head.node, safe=True)


def _rewrite_conv(graph: ir.Graph, conv: ir.Node) -> None:
    source, result, numbers = conv.inputs[0], conv.outputs[0], weight_and_bias(conv)
    assert source is not None
    assert numbers is not None
    name = str(conv.name or result.name)
    flatten = new_node("Flatten", f"{name}.flatten", [source], [ir.AttrInt64("axis", 1)])
    weight = new_initializer(graph, f"{name}.matrix", numbers[0][:, :, 0, 0].astype(np.float32))
    bias = new_initializer(graph, f"{name}.bias", numbers[1].astype(np.float32))
    gemm = new_node("Gemm", name, [flatten.outputs[0], weight, bias], [ir.AttrInt64("transB", 1)])
    axes = new_initializer(graph, f"{name}.axes", np.array([2, 3], np.int64))
    unsqueeze = new_node("Unsqueeze", f"{name}.unsqueeze", [gemm.outputs[0], axes])
    for node in (flatten, gemm, unsqueeze):
        node.outputs[0].name = unused_name(graph, f"{result.name}:{node.op_type.lower()}")
    graph.insert_before(conv, [flatten, gemm, unsqueeze])
    take_over_output(unsqueeze, result)

"""Add a constant to channels where they are made and take it away where they are read, by changing constants only.

For any c, one number a channel, and x' = x + c:

- **made** by a Conv: b + c; by a BatchNormalization: β + c. MaxPool and an AveragePool of whole windows pass the
  constant on. A ReLU does not: what comes out of one is never negative and needs no shift.
- **read** by a BatchNormalization: μ + c; by a Conv that never pads: b − Σ W·c, since each of its sums takes all of c in.

Sums are computed in float64 and rounded once. A changed constant is a new initializer, so that another node which
shares the old one keeps it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.convs import pads, set_bias, weight_and_bias
from densenet_deploy.graph.graph_pass import Double, Float, constant, is_operator, new_initializer
from densenet_deploy.graph.norms import why_no_affine
from densenet_deploy.graph.rescale import Source, columns_of
from densenet_deploy.graph.tensor_changes import TensorChanges


def why_not_shifted(source: Source) -> str | None:
    """Say why the tensor that `source` makes cannot be shifted, or None if it can."""
    if not (is_operator(source.node, "Conv") or is_operator(source.node, "BatchNormalization")):
        return f"{source.node.op_type} makes it"
    for node in {value.producer() for value in source.values} - {source.node}:
        assert node is not None
        if is_operator(node, "Relu"):
            return "a Relu makes it"
        if is_operator(node, "AveragePool") and (pads(node) or node.attributes.get_int("ceil_mode", 0) != 0):
            return "an AveragePool that does not average whole windows makes it"
    return None


def shift(graph: ir.Graph, source: Source, c: Float, changes: TensorChanges) -> None:
    """Add `c[i]` to channel i of every value of `source`, rename them and add them to `changes`."""
    if is_operator(source.node, "Conv"):
        _add_to_bias(graph, source.node, c.astype(np.float64))
    else:
        _add_to_numbers(graph, source.node, 2, c)  # β
    for value in source.values:
        changes.shift(graph, value, c)


def why_not_absorbed(node: ir.Node, index: int) -> str | None:
    """Say why `node` cannot undo a shift of its input number `index`, or None if it can."""
    if is_operator(node, "BatchNormalization") and index == 0:
        return why_no_affine(node)
    if not is_operator(node, "Conv") or index != 0:
        return "is not known to take a shift away"
    if weight_and_bias(node) is None:
        return "has weights that are no float32 constants"
    return "pads its input" if pads(node) else None


def absorb(graph: ir.Graph, node: ir.Node, c: Float) -> None:
    """Let `node`, to whose input channels `c` was added, compute what it computed."""
    if is_operator(node, "BatchNormalization"):
        _add_to_numbers(graph, node, 3, c)  # μ
        return
    weights = columns_of(node)
    sums = weights.reshape(*weights.shape[:3], -1).sum(axis=3)  # (groups, outputs a group, inputs a group)
    taken = np.einsum("goi,gi->go", sums, c.astype(np.float64).reshape(len(sums), -1)).ravel()
    _add_to_bias(graph, node, -taken)


def _add_to_bias(graph: ir.Graph, conv: ir.Node, amount: Double) -> None:
    numbers = weight_and_bias(conv)
    assert numbers is not None
    set_bias(graph, conv, numbers[1] + amount, "shifted")


def _add_to_numbers(graph: ir.Graph, norm: ir.Node, index: int, amount: Float) -> None:
    value = norm.inputs[index]
    numbers = constant(value)
    assert value is not None
    assert numbers is not None
    total = (numbers.astype(np.float64) + amount).astype(np.float32)
    norm.replace_input_with(index, new_initializer(graph, f"{value.name}:shifted", total))

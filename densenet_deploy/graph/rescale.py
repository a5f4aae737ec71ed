"""Divide channels where they are made and multiply them where they are read, by changing constants only.

For d > 0, one number a channel, and x' = x/d:

- **made** by a Conv: W/d per output channel, b/d; by a BatchNormalization: γ/d, β/d; by x·s + t: s/d, t/d. ReLU,
  MaxPool and AveragePool pass the division on, since f(x/d) = f(x)/d for each of them.
- **read** by a Conv: W·d per input channel; by a BatchNormalization: γ·d and μ/d, because
  γ·(d·x' − μ)/σ + β = γ·d·(x' − μ/d)/σ + β; by x·s: s·d.

Products are computed in float64 and rounded once. A changed constant is a new initializer, so that another node which
shares the old one keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.channels import rank_of
from densenet_deploy.graph.graph_pass import Double, Float, constant, is_operator, new_initializer, only_reader
from densenet_deploy.graph.norms import why_no_affine
from densenet_deploy.graph.tensor_changes import TensorChanges

_PASSES_DIVISION: Final = ("Relu", "MaxPool", "AveragePool")
_SCALED: Final = ":scaled"


@dataclass(frozen=True)
class Source:
    """The node whose constants decide the scale of a tensor, and all `values` from its output up to that tensor."""

    node: ir.Node
    values: tuple[ir.Value, ...]


def source_of(value: ir.Value | None) -> Source | str:
    """Return the source of `value`, or a reason why it cannot be divided.

    Between the source and `value` no tensor may have another reader; who reads `value` itself is the caller's matter.
    """
    values: list[ir.Value] = []
    while value is not None:
        values.append(value)
        node = value.producer()
        if node is None:
            return f"{value.name} is an input of the graph"
        if len(values) > 1 and only_reader(value) is None:
            return f"{value.name} has other readers"
        if not any(is_operator(node, kind) for kind in _PASSES_DIVISION):
            return _as_source(node, values)
        value = node.inputs[0]
    return "an input is missing"


def divide(graph: ir.Graph, source: Source, d: Float, changes: TensorChanges) -> None:
    """Divide channel c of every value of `source` by `d[c]`, rename them and add them to `changes`."""
    inverse = 1 / d.astype(np.float64)
    if is_operator(source.node, "Add"):
        product = _tensor_input(source.node).producer()
        assert product is not None
        _scale_operand(graph, product, inverse)
        _scale_operand(graph, source.node, inverse)
    else:
        for index in (1, 2):  # weight and bias of a Conv, γ and β of a BatchNormalization
            _scale_rows(graph, source.node, index, inverse)
    for value in source.values:
        changes.scale(graph, value, d)


def why_not_absorbed(node: ir.Node, index: int) -> str | None:
    """Say why `node` cannot undo a division of its input number `index`, or None if it can."""
    if is_operator(node, "Conv") and index == 0:
        return None if constant(node.inputs[1]) is not None else "has weights that are no float32 constants"
    if is_operator(node, "BatchNormalization") and index == 0:
        return why_no_affine(node)
    if is_operator(node, "Mul"):
        return None if _is_per_channel(node) else "multiplies by something else than a float32 constant a channel"
    return "is not known to scale"


def absorb(graph: ir.Graph, node: ir.Node, d: Float) -> None:
    """Let `node`, whose input channels were divided by `d`, compute what it computed."""
    factor = d.astype(np.float64)
    if is_operator(node, "Conv"):
        by_input = columns_of(node)
        scaled = by_input * factor.reshape(len(by_input), 1, -1, *[1] * (by_input.ndim - 3))
        _replace(graph, node, 1, scaled.reshape(_numbers(node, 1).shape))
    elif is_operator(node, "BatchNormalization"):
        _scale_rows(graph, node, 1, factor)
        _scale_rows(graph, node, 3, 1 / factor)
    else:
        _scale_operand(graph, node, factor)


def columns_of(conv: ir.Node) -> Double:
    """Return the weight of `conv` as (groups, outputs a group, inputs a group, kernel …)."""
    weight, groups = _numbers(conv, 1), conv.attributes.get_int("group", 1)
    return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])


def _as_source(node: ir.Node, values: list[ir.Value]) -> Source | str:
    name = node.name or node.op_type
    if is_operator(node, "Conv"):
        numbers = [value for value in node.inputs[1:] if value is not None]
        is_known = all(constant(value) is not None for value in numbers)
        return Source(node, tuple(values)) if is_known else f"{name} has weights that are no float32 constants"
    if is_operator(node, "BatchNormalization"):
        reason = why_no_affine(node)
        return Source(node, tuple(values)) if reason is None else f"{name} {reason}"
    if is_operator(node, "Add") and _is_per_channel(node):
        product = _tensor_input(node)
        maker = product.producer()
        if maker is not None and is_operator(maker, "Mul") and _is_per_channel(maker) and only_reader(product) is node:
            return Source(node, (*values, product))
    return f"it is made by {node.op_type} ({name}), which is not known to scale"


def _is_per_channel(node: ir.Node) -> bool:
    """Whether `node` joins a tensor with a constant that has one number a channel, or one for all."""
    array, tensor = constant(node.inputs[_operand(node)]), _tensor_input(node)
    rank = rank_of(tensor)
    if array is None or rank is None or constant(tensor) is not None:
        return False
    axes = range(rank - array.ndim, rank)
    return all(size == 1 or axis == 1 for axis, size in zip(axes, array.shape, strict=True))


def _operand(node: ir.Node) -> int:
    """Which input of a Mul or Add is its constant."""
    return 0 if constant(node.inputs[0]) is not None else 1


def _tensor_input(node: ir.Node) -> ir.Value:
    value = node.inputs[1 - _operand(node)]
    assert value is not None
    return value


def _scale_operand(graph: ir.Graph, node: ir.Node, factor: Double) -> None:
    """Multiply the constant of a Mul or Add by `factor`, (C,)."""
    rank = rank_of(_tensor_input(node))
    assert rank is not None
    index = _operand(node)
    _replace(graph, node, index, _numbers(node, index) * factor.reshape(-1, *[1] * (rank - 2)))


def _scale_rows(graph: ir.Graph, node: ir.Node, index: int, factor: Double) -> None:
    """Multiply row c of the constant at `index` by `factor[c]`; an input that `node` does without stays absent."""
    if index < len(node.inputs) and node.inputs[index] is not None:
        rows = _numbers(node, index)
        _replace(graph, node, index, rows * factor.reshape(-1, *[1] * (rows.ndim - 1)))


def _numbers(node: ir.Node, index: int) -> Double:
    array = constant(node.inputs[index])
    assert array is not None
    return array.astype(np.float64)


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: Double) -> None:
    """Let `node` read `array` as its input number `index`, and forget the old initializer if nothing reads it now."""
    old = node.inputs[index]
    assert old is not None
    name = str(old.name)
    node.replace_input_with(index, None)
    if old.is_initializer() and not (old.uses() or old.is_graph_output()):
        del graph.initializers[name]
    new = new_initializer(graph, name.removesuffix(_SCALED) + _SCALED, array.astype(np.float32))
    node.replace_input_with(index, new)

"""Rescale or shift channels where they are made and undo it where they are read, by changing constants only.

For d > 0, one number per channel, and x' = x/d:

- **made** by a Conv: W/d per output channel, b/d; by a BatchNormalization: γ/d, β/d; by x·s + t: s/d, t/d. ReLU,
  MaxPool and AveragePool pass the division on, since f(x/d) = f(x)/d for each of them.
- **read** by a Conv: W·d per input channel; by a BatchNormalization: γ·d and μ/d, because
  γ·(d·x' − μ)/σ + β = γ·d·(x' − μ/d)/σ + β; by x·s: s·d.

For any c, one number per channel, and x' = x + c:

- **made** by a Conv: b + c; by a BatchNormalization: β + c. MaxPool and an AveragePool of whole windows pass the
  constant on. A ReLU does not: its output is never negative and needs no shift.
- **read** by a BatchNormalization: μ + c; by a Conv that never pads: b − Σ W·c, as each of its sums takes all of c in.

Numbers are computed in float64 and rounded once. A changed constant is a new initializer, so that another node which
shares the old one keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    Double,
    Float,
    averages_whole_windows,
    constant,
    is_operator,
    new_initializer,
    only_reader,
    pads,
    rank_of,
    remove_initializer,
    set_bias,
    spread,
    weight_and_bias,
    why_not_affine,
)
from densenet_deploy.graph.tensor_changes import TensorChanges

Ranges = Mapping[str, npt.NDArray[np.floating[Any]]]
"""By tensor name, the largest absolute value that calibration saw in each channel, (C,)."""

_PASSES_DIVISION: Final = ("Relu", "MaxPool", "AveragePool")
_SCALED: Final = ":scaled"
_FLOOR: Final = 1e-3


@dataclass(frozen=True)
class Source:
    """The node with constants that decide the scale of a tensor, and all `values` from its output to that tensor."""

    node: ir.Node
    values: tuple[ir.Value, ...]


def source_of(value: ir.Value | None) -> Source | str:
    """Return the source of `value`, or a reason why it cannot be divided.

    Between the source and `value` no tensor may have another reader; the caller looks at the readers of `value`.
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


def why_not_unscaled(node: ir.Node, index: int) -> str | None:
    """Say why `node` cannot undo a division of its input number `index`, or None if it can."""
    if is_operator(node, "Conv") and index == 0:
        return None if constant(node.inputs[1]) is not None else "has weights that are not float32 constants"
    if is_operator(node, "BatchNormalization") and index == 0:
        return why_not_affine(node)
    if is_operator(node, "Mul"):
        return None if _is_per_channel(node) else "does not multiply by one float32 constant per channel"
    return "is not known to undo a scale"


def unscale(graph: ir.Graph, node: ir.Node, d: Float) -> None:
    """Let `node`, after its input channels were divided by `d`, compute what it computed."""
    factor = d.astype(np.float64)
    if is_operator(node, "Conv"):
        by_input = columns_of(node)
        scaled = by_input * factor.reshape(len(by_input), 1, by_input.shape[2], *[1] * (by_input.ndim - 3))
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


# -- shifts


def why_not_shifted(source: Source) -> str | None:
    """Say why the tensor that `source` makes cannot be shifted, or None if it can."""
    if not (is_operator(source.node, "Conv") or is_operator(source.node, "BatchNormalization")):
        return f"{source.node.op_type} makes it"
    for node in {value.producer() for value in source.values} - {source.node}:
        assert node is not None
        if is_operator(node, "Relu"):
            return "a Relu makes it"
        if is_operator(node, "AveragePool") and not averages_whole_windows(node):
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


def why_not_unshifted(node: ir.Node, index: int) -> str | None:
    """Say why `node` cannot undo a shift of its input number `index`, or None if it can."""
    if is_operator(node, "BatchNormalization") and index == 0:
        return why_not_affine(node)
    if not is_operator(node, "Conv") or index != 0:
        return "is not known to undo a shift"
    if weight_and_bias(node) is None:
        return "has weights that are not float32 constants"
    return "pads its input" if pads(node) else None


def unshift(graph: ir.Graph, node: ir.Node, c: Float) -> None:
    """Let `node`, after `c` was added to its input channels, compute what it computed."""
    if is_operator(node, "BatchNormalization"):
        _add_to_numbers(graph, node, 3, c)  # μ
        return
    weights = columns_of(node)
    sums = weights.sum(axis=tuple(range(3, weights.ndim)))  # (groups, outputs a group, inputs a group)
    taken = np.einsum("goi,gi->go", sums, c.astype(np.float64).reshape(len(sums), sums.shape[2])).ravel()
    _add_to_bias(graph, node, -taken)


# -- ranges


def why_no_range(ranges: Ranges, name: str, channels: int) -> str | None:
    """Say why `ranges` do not hold the range of the tensor `name` of that many channels, or None if they do."""
    if name not in ranges:
        return f"no range of {name} is given"
    given = ranges[name]
    if given.shape != (channels,):
        return f"the range of {name} has the shape {given.shape}, not ({channels},)"
    return None if np.isfinite(given).all() and (given >= 0).all() else f"the range of {name} is negative or not finite"


def floored(sizes: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return `sizes`, (C,), raised to at least 10⁻³ of the largest: a dead channel must not divide by zero."""
    exact = np.asarray(sizes, np.float64)
    return np.asarray(np.maximum(exact, _FLOOR * exact.max()))


# -- constants


def _as_source(node: ir.Node, values: list[ir.Value]) -> Source | str:
    name = node.name or node.op_type
    if is_operator(node, "Conv"):
        numbers = [value for value in node.inputs[1:] if value is not None]
        is_known = all(constant(value) is not None for value in numbers)
        return Source(node, tuple(values)) if is_known else f"{name} has weights that are not float32 constants"
    if is_operator(node, "BatchNormalization"):
        reason = why_not_affine(node)
        return Source(node, tuple(values)) if reason is None else f"{name} {reason}"
    if is_operator(node, "Add") and _is_per_channel(node):
        product = _tensor_input(node)
        maker = product.producer()
        if is_operator(maker, "Mul") and _is_per_channel(maker) and only_reader(product) is node:
            return Source(node, (*values, product))
    return f"it is made by {node.op_type} ({name}), which is not known to pass a scale on"


def _is_per_channel(node: ir.Node) -> bool:
    """Whether `node` joins a tensor with a constant that has one number per channel, or one for all."""
    array, tensor = constant(node.inputs[_operand(node)]), _tensor_input(node)
    rank = rank_of(tensor)
    return (
        array is not None
        and rank is not None
        and constant(tensor) is None
        and all(size == 1 or axis == 1 for axis, size in zip(range(rank - array.ndim, rank), array.shape, strict=True))
    )


def _operand(node: ir.Node) -> int:
    """Return which input of a Mul or Add is its constant."""
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
    _replace(graph, node, index, _numbers(node, index) * spread(factor, rank - 1))


def _scale_rows(graph: ir.Graph, node: ir.Node, index: int, factor: Double) -> None:
    """Multiply row c of the constant at `index` by `factor[c]`; an input that `node` does not have stays absent."""
    if index < len(node.inputs) and node.inputs[index] is not None:
        rows = _numbers(node, index)
        _replace(graph, node, index, rows * spread(factor, rows.ndim))


def _numbers(node: ir.Node, index: int) -> Double:
    array = constant(node.inputs[index])
    assert array is not None
    return array.astype(np.float64)


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: Double) -> None:
    """Let `node` read `array` as its input number `index`, and drop the old initializer if nothing else reads it."""
    old = node.inputs[index]
    assert old is not None
    name = str(old.name)
    node.replace_input_with(index, None)
    if old.is_initializer() and not (old.uses() or old.is_graph_output()):
        remove_initializer(graph, name)
    new = new_initializer(graph, name.removesuffix(_SCALED) + _SCALED, array.astype(np.float32))
    node.replace_input_with(index, new)


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

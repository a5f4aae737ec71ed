"""Questions about the nodes and values of a graph, and small changes of them, that passes and recipes share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

_CHANNELS_KEPT: Final = ("Relu", "MaxPool", "AveragePool", "BatchNormalization", "Identity", "Dropout")


def is_operator(node: ir.Node | None, op_type: str) -> TypeGuard[ir.Node]:
    """Whether `node` is the ONNX operator `op_type`; an operator of another domain may share the name."""
    return node is not None and node.op_type == op_type and node.domain == ""


def maker(value: ir.Value | None) -> ir.Node | None:
    """Return the node that computes `value`; None for an input, an initializer and a left out input."""
    return None if value is None else value.producer()


def constant(value: ir.Value | None) -> Float | None:
    """Return the float32 numbers of a value that is an initializer, a Constant or the Identity of one, else None.

    An initializer that is listed as a graph input too is a default that a caller may override, not a constant.
    """
    while is_operator(node := maker(value), "Identity"):
        value = node.inputs[0]
    tensor = ir.convenience.get_const_tensor(value) if value is not None and not value.is_graph_input() else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return tensor.numpy()


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the whole numbers of a constant (of any integer type, flattened), else None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None and not value.is_graph_input() else None
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return tuple(int(number) for number in tensor.numpy().ravel())


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value` (once), or None if it is read otherwise or leaves the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


# -- changes


def set_inputs(node: ir.Node, inputs: Sequence[ir.Value]) -> None:
    """Let `node` read exactly `inputs`."""
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def new_node(op_type: str, name: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Node:
    """Make a node, not yet in a graph; its one output is called `name` like the node itself."""
    node = ir.Node("", op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    if (known := _known_names.get()) is not None:
        known.names.add(name)
    return node


class _KnownNames(NamedTuple):
    graph: ir.Graph
    names: set[str]
    """Of all values that the graph has, and of some that it no longer has."""


_known_names: ContextVar[_KnownNames | None] = ContextVar("known_names", default=None)


@contextlib.contextmanager
def names_known(graph: ir.Graph) -> Iterator[None]:
    """Look names up in a set while the block adds nodes to `graph` that `new_node` makes.

    Values are renamed to what `unused_name` returns, or to a name that another value of the graph had.

    Without it every new name is looked for among all nodes, which takes seconds where a thousand are added.
    """
    token = _known_names.set(_KnownNames(graph, {*_names_of_values(graph), *graph.initializers}))
    try:
        yield
    finally:
        _known_names.reset(token)


def _names_of_values(graph: ir.Graph) -> set[str]:
    return {str(value.name) for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}


def unused_name(graph: ir.Graph, name: str) -> str:
    """Return `name`, with underscores appended if a value of `graph` already has it."""
    known = _known_names.get()
    is_known = known is not None and known.graph is graph
    if not is_known or name in known.names:  # type: ignore[union-attr]
        taken = _names_of_values(graph)
        while name in graph.initializers or name in taken:
            name += "_"
    if is_known:
        known.names.add(name)  # type: ignore[union-attr]
    return name


def take_over_output(node: ir.Node, replaced: ir.Value) -> None:
    """Put the output of `node`, with name, type and shape, in the place of `replaced`, and drop the maker of that."""
    result, maker = node.outputs[0], replaced.producer()
    name, kind, shape = replaced.name, replaced.type or result.type, replaced.shape or result.shape
    assert maker is not None
    assert maker.graph is not None
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
    maker.graph.remove(maker, safe=True)
    result.name, result.type, result.shape = name, kind, shape


def new_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """Add `array` to the initializers of `graph` under a name derived from `name` and return its value."""
    unique = unused_name(graph, name)
    tensor = ir.tensor(np.asarray(array), name=unique)
    value = ir.Value(name=unique, const_value=tensor)
    value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
    graph.register_initializer(value)
    return value


def remove_initializer(graph: ir.Graph, name: str) -> None:
    """Remove the initializer called `name`, which nothing reads; another value may then have the name."""
    del graph.initializers[name]
    if (known := _known_names.get()) is not None and known.graph is graph:
        known.names.discard(name)


def spread(numbers: Double, axes: int) -> Double:
    """Return `numbers`, (C,), as (C, 1, …) with that many axes."""
    return numbers.reshape(len(numbers), *[1] * (axes - 1))


# -- axes and channels, from shapes or, where a file holds none, from the operators


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of axes of `value`, or None if it is unknown."""
    if value is None:
        return None
    if value.shape is not None:
        return value.shape.rank()
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type in ("Flatten", "Gemm"):
        return 2
    if node.op_type in ("Add", "Div", "Mul", "Sub"):
        return _broadcast_rank(node)
    return rank_of(node.inputs[0]) if node.op_type in (*_CHANNELS_KEPT, "Concat", "Conv") else None


def _broadcast_rank(node: ir.Node) -> int | None:
    ranks = [rank for rank in map(rank_of, node.inputs) if rank is not None]
    return max(ranks) if len(ranks) == len(node.inputs) else None


def channels_of(value: ir.Value | None) -> int | None:
    """Return the size of axis 1 of `value`, or None if it is unknown."""
    while value is not None:
        if value.shape is not None and value.shape.rank() > 1 and isinstance(size := value.shape[1], int):
            return size
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type == "Conv":
            weight = constant(node.inputs[1])
            return None if weight is None else len(weight)
        value = node.inputs[0] if node.op_type in _CHANNELS_KEPT else None
    return None


# -- BatchNormalization: y = s·x + t with s = γ/√(var + ε) and t = β − μ·s


def why_not_affine(norm: ir.Node) -> str | None:
    """Say why the BatchNormalization `norm` is not a fixed scale and shift, in words that follow its name, or None."""
    if norm.attributes.get_int("training_mode", 0) != 0 or len(norm.outputs) > 1:
        return "is in training mode"
    if any(constant(value) is None for value in norm.inputs[1:]):
        return "has numbers that are not float32 constants"
    return None


def scale_and_shift(norm: ir.Node) -> tuple[Double, Double]:
    """Return s and t of `norm`, (C,) each, in float64; `why_not_affine` must have returned None."""
    gamma, beta, mean, variance = (np.asarray(constant(value), np.float64) for value in norm.inputs[1:])
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


# -- Conv and pools


def pads(node: ir.Node) -> bool:
    """Whether a Conv or pool may add pixels around its input."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic not in ("NOTSET", "VALID") or any(node.attributes.get_ints("pads", ()))


def averages_whole_windows(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether `node` is an AveragePool with windows that never reach over the edge: it maps a constant to itself."""
    return is_operator(node, "AveragePool") and not pads(node) and node.attributes.get_int("ceil_mode", 0) == 0


def conv_before(node: ir.Node) -> ir.Node | str:
    """Return the Conv that only `node` reads, or a reason why there is none, in words about `node`."""
    conv = maker(node.inputs[0])
    if not is_operator(conv, "Conv"):
        return f"it follows {conv.op_type if conv else 'an input'}, not a Conv"
    if only_reader(conv.outputs[0]) is not node:
        return f"{conv.name or 'its Conv'} has other readers"
    return conv


def weight_and_bias(conv: ir.Node) -> tuple[Double, Double] | None:
    """Return W (O, I, …) and b (O,) of `conv`, b of zeros where it has none, or None if they are not constants."""
    weight = constant(conv.inputs[1])
    if weight is None:
        return None
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant(conv.inputs[2]) if has_bias else np.zeros(len(weight), np.float32)
    return None if bias is None else (weight.astype(np.float64), bias.astype(np.float64))


def set_weight_and_bias(graph: ir.Graph, conv: ir.Node, weight: Double, bias: Double, role: str) -> None:
    """Let `conv` read new numbers, rounded to float32; `role` goes into their names, after that of the old weight."""
    stored = _stored(graph, conv, weight, f"{role}.weight")
    set_bias(graph, conv, bias, role)
    conv.replace_input_with(1, stored)


def set_bias(graph: ir.Graph, conv: ir.Node, bias: Double, role: str) -> None:
    """Let `conv` read another bias (O,), named and rounded as by `set_weight_and_bias`."""
    stored = _stored(graph, conv, bias, f"{role}.bias")
    conv.resize_inputs(3)
    conv.replace_input_with(2, stored)


def _stored(graph: ir.Graph, conv: ir.Node, numbers: Double, ending: str) -> ir.Value:
    weight = conv.inputs[1]
    assert weight is not None
    return new_initializer(graph, f"{str(weight.name).removesuffix('.weight')}.{ending}", numbers.astype(np.float32))

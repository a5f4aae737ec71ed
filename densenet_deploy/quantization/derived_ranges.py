"""Extremes of tensors that follow from those of others, so that nobody has to observe them.

A Concat along channels has the extremes of its inputs. A BatchNormalization computes s·x + t, which rises or falls with
x, and a ReLU is max(x, 0): the extremes of both follow from those of x. In a DenseNet these are three quarters of all
activations, since every layer normalizes everything before it once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import is_operator, rank_of, scale_and_shift, why_not_affine
from densenet_deploy.quantization.observers.observer import ChannelRanges

Ends = npt.NDArray[Any]

OPERATORS: Final = ("BatchNormalization", "Concat", "Relu")
"""The operators whose outputs' extremes follow."""


def derivable(graph: ir.Graph, known: Collection[str], operators: Collection[str] = OPERATORS) -> Iterator[ir.Node]:
    """Yield the nodes of `operators`, in order, with outputs whose extremes follow from those of tensors `known`."""
    names = set(known)
    for node in graph:
        sources = _sources(node) if any(is_operator(node, operator) for operator in operators) else ()
        if sources and names.issuperset(str(value.name) for value in sources):
            names.add(str(node.outputs[0].name))
            yield node


def derived(
    graph: ir.Graph, extremes: Mapping[str, ChannelRanges], operators: Collection[str] = OPERATORS
) -> dict[str, ChannelRanges]:
    """Return `extremes`, by tensor name, together with those that follow from them."""
    found = dict(extremes)
    for node in derivable(graph, extremes, operators):
        given = [found[str(value.name)] for value in _sources(node)]
        low, high = _ends(node, given)
        found.setdefault(str(node.outputs[0].name), ChannelRanges(low, high))
    return found


def _sources(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the values that decide on the extremes of the output of `node`; nothing if they do not follow."""
    values = tuple(value for value in node.inputs if value is not None)
    if is_operator(node, "Concat"):
        axis = node.attributes.get_int("axis", 0)
        return values if axis == 1 or (axis == -3 and rank_of(node.outputs[0]) == 4) else ()
    if is_operator(node, "BatchNormalization") and why_not_affine(node) is not None:
        return ()
    return values[:1]


def _ends(node: ir.Node, given: list[ChannelRanges]) -> tuple[Ends, Ends]:
    if is_operator(node, "Concat"):
        return np.concatenate([part.low for part in given]), np.concatenate([part.high for part in given])
    low, high = given[0].low, given[0].high
    if is_operator(node, "Relu"):
        return np.maximum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)
    scale, shift = scale_and_shift(node)
    one, other = scale * low + shift, scale * high + shift  # in float64 up to the next ReLU
    return np.minimum(one, other), np.maximum(one, other)

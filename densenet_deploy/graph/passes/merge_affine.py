"""Write a chain of scales and shifts as one BatchNormalization.

Caffe splits a norm into BatchNormalization, Mul and Add; Keras and TensorFlow write a bias as an Add after the Conv;
other converters decompose a norm into Sub, Mul and Add. Each node is y = s·x + t per channel (`graph/affine.py`), and
so is the chain: s and t are multiplied out in float64, rounded once, and stored as γ and β of a norm with mean 0 and
variance 1. Its output takes the name of the last node's, since it holds that value.

A chain has at least two nodes; a single one is merged where it is the only reader of a Conv, and `fold-batchnorm` then
folds it into that. A BatchNormalization alone stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.affine import Affine, affine_of
from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import (
    channels_of,
    is_operator,
    new_initializer,
    new_node,
    only_reader,
    rank_of,
    take_over_output,
)


class _Chain(NamedTuple):
    """Nodes that scale and shift one after the other, and all of them as one."""

    nodes: tuple[ir.Node, ...]
    affine: Affine


@graph_passes.register("merge-affine")
class MergeAffine(GraphPass):
    """Replace every chain of scales and shifts by one BatchNormalization."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        changed, skipped = [], []
        for chain in list(_chains(model.graph)):
            name = str(chain.nodes[-1].name or chain.nodes[-1].outputs[0].name)
            reason = _why_not(chain)
            if reason is None:
                _rewrite(model.graph, chain)
                changed.append(name)
            elif reason:
                skipped.append(f"{name}: {reason}")
        return PassOutcome.of(model, changed, skipped)


def _chains(graph: ir.Graph) -> Iterator[_Chain]:
    """Yield the chains of `graph` in execution order, each as long as it gets."""
    found: dict[ir.Node, _Chain] = {}
    for node in graph:
        affine = affine_of(node)
        if affine is None:
            continue
        before = affine.source.producer()
        if before in found and only_reader(affine.source) is node:
            earlier = found.pop(before)
            found[node] = _Chain((*earlier.nodes, node), affine.after(earlier.affine))
        else:
            found[node] = _Chain((node,), affine)
    yield from found.values()


def _why_not(chain: _Chain) -> str | None:
    """Say why `chain` is not merged, or nothing where there is nothing to merge; None if it is."""
    source, first = chain.affine.source, chain.nodes[0]
    is_behind_conv = is_operator(source.producer(), "Conv") and only_reader(source) is first
    if len(chain.nodes) == 1 and (is_operator(first, "BatchNormalization") or not is_behind_conv):
        return ""
    if rank_of(source) != 4:
        return "what it scales is not known to have four axes"
    channels = channels_of(source)
    if channels is None or chain.affine.scale.size not in (1, channels):
        return "the number of channels that it scales is not known, or another one"
    with np.errstate(over="ignore"):
        numbers = np.stack([chain.affine.scale, chain.affine.shift]).astype(np.float32)
    return None if np.isfinite(numbers).all() else "its scale or shift is beyond float32"


def _rewrite(graph: ir.Graph, chain: _Chain) -> None:
    last, source = chain.nodes[-1], chain.affine.source
    channels = channels_of(source)
    assert channels is not None
    name = str(last.name or last.outputs[0].name)
    roles = {"scale": chain.affine.scale, "shift": chain.affine.shift, "mean": np.zeros(1), "variance": np.ones(1)}
    numbers = [
        new_initializer(graph, f"{name}.{role}", np.broadcast_to(array, channels).astype(np.float32))
        for role, array in roles.items()
    ]
    norm = new_node("BatchNormalization", name, [source, *numbers], [ir.AttrFloat32("epsilon", 0.0)])
    graph.insert_before(last, norm)
    take_over_output(norm, last.outputs[0])
    graph.remove(reversed(chain.nodes[:-1]), safe=True)

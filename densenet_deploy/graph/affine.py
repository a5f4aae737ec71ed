"""Nodes that scale and shift each channel by fixed numbers, in whatever operators they are written.

y = s·x + t with one s and one t for each channel, or one for all: a BatchNormalization, or an Add, Sub, Mul or Div with
a constant, on either side except for c/x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.nodes import Double, constant, is_operator, rank_of, scale_and_shift, why_not_affine

AFFINE_OPERATORS = ("Add", "BatchNormalization", "Div", "Mul", "Sub")


@dataclass(frozen=True, eq=False)
class Affine:
    """What `scale`·x + `shift`, (C,) or (1,) each, makes of `source`."""

    source: ir.Value
    scale: Double
    shift: Double

    def after(self, first: Affine) -> Affine:
        """Return both as one: `first`, then this."""
        return Affine(first.source, self.scale * first.scale, self.scale * first.shift + self.shift)


def affine_of(node: ir.Node, axis: int = 1) -> Affine | None:
    """Return `node` as a scale and shift along `axis`, or None if it is something else."""
    if is_operator(node, "BatchNormalization"):
        source = node.inputs[0]
        if source is None or axis != 1 or why_not_affine(node) is not None:
            return None
        return Affine(source, *scale_and_shift(node))
    if node.domain != "" or node.op_type not in AFFINE_OPERATORS:
        return None
    index = 0 if constant(node.inputs[0]) is not None else 1
    source, array = node.inputs[1 - index], constant(node.inputs[index])
    if source is None or array is None or constant(source) is not None:
        return None
    numbers = _per_channel(np.asarray(array, np.float64), rank_of(source), axis)
    return None if numbers is None else _scaled_or_shifted(node.op_type, source, numbers, is_first=index == 0)


def _per_channel(array: Double, rank: int | None, axis: int) -> Double | None:
    """Return `array` as (C,) or (1,) if it broadcasts along `axis` of a tensor of that rank only."""
    if array.size == 1:
        return array.reshape(1)
    if rank is None or array.ndim > rank:
        return None
    sizes = (1,) * (rank - array.ndim) + array.shape
    return array.ravel() if sizes[axis] == array.size else None


def _scaled_or_shifted(op_type: str, source: ir.Value, numbers: Double, *, is_first: bool) -> Affine | None:
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    if op_type == "Add":
        return Affine(source, one, numbers)
    if op_type == "Mul":
        return Affine(source, numbers, zero)
    if op_type == "Sub":
        return Affine(source, -one, numbers) if is_first else Affine(source, one, -numbers)
    return None if is_first or not numbers.all() else Affine(source, 1 / numbers, zero)

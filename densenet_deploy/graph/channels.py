"""How many axes and channels a tensor has, from its shape or, where a file holds no shapes, from what makes it."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import constant

_CHANNELS_KEPT: Final = ("Relu", "MaxPool", "AveragePool", "BatchNormalization", "Identity", "Dropout")


def rank_of(value: ir.Value | None) -> int | None:
    """Return the number of axes of `value`, or None if nothing says."""
    if value is None:
        return None
    if value.shape is not None:
        return value.shape.rank()
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Flatten":
        return 2
    if node.op_type in ("Mul", "Add"):
        return _stretched(node)
    return rank_of(node.inputs[0]) if node.op_type in (*_CHANNELS_KEPT, "Concat", "Conv") else None


def _stretched(node: ir.Node) -> int | None:
    """Return the number of axes that the inputs of `node` have once the shorter is stretched to the longer."""
    ranks = [rank for rank in map(rank_of, node.inputs) if rank is not None]
    return max(ranks) if len(ranks) == len(node.inputs) else None


def channels_of(value: ir.Value | None) -> int | None:
    """Return the size of axis 1 of `value`, or None if nothing says."""
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

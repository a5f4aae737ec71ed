"""Move the spread of channel ranges from the inputs of a convolution into its weights.

The maker of channel c is divided by d_c > 0 and the weights that read it are multiplied by d_c. The division passes a
ReLU, relu(s·x + t)/d = relu((s/d)·x + t/d), and a pool, so it reaches the norm before conv1, conv1 itself before conv2,
and the norm before a transition's convolution. With

    d_c = range_c^α / |w_c|^(1−α),   |w_c| the largest absolute weight that reads channel c,

activations and weights share what is hard to quantize: all of it goes into the weights at α = 1, all into the
activations at α = 0. This is the migration of SmoothQuant (Xiao et al. 2023, https://arxiv.org/abs/2211.10438) and, at
α = 0.5, near the optimum of cross-layer equalization (Nagel et al. 2019, https://arxiv.org/abs/1906.04721). The algebra
of each operator is in `rescale.py`. Both sizes are held at 10⁻³ of their largest or more, so that d stays positive.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Edit, NodePass, graph_passes
from densenet_deploy.graph.nodes import Double, Float, only_reader
from densenet_deploy.graph.rescale import (
    Ranges,
    Source,
    columns_of,
    divide,
    floored,
    source_of,
    unscale,
    why_no_range,
    why_not_unscaled,
)
from densenet_deploy.options import require_range


class _Pair(NamedTuple):
    """A Conv, and the source of its input."""

    source: Source
    conv: ir.Node


@graph_passes.register("equalize-layer")
class EqualizeLayer(NodePass[_Pair]):
    """Balance the input channels of every Conv against the weights that read them.

    Attributes:
        ranges: the largest absolute value that calibration saw, by tensor name and channel, (C,). The names of the
            Convs' inputs are needed; without any range nothing is changed.
        alpha: from 0 to 1, how much of the ranges moves into the weights.

    Raises:
        UsageError: if `alpha` is out of range.
    """

    op_type = "Conv"

    def __init__(self, ranges: Ranges | None = None, alpha: float = 0.5) -> None:
        require_range("alpha", alpha, 0.0, 1.0)
        self.ranges: Ranges = ranges or {}
        self.alpha = alpha

    def match(self, node: ir.Node) -> _Pair | str:
        value = node.inputs[0]
        source = source_of(value)
        if isinstance(source, str):
            return source
        assert value is not None
        if only_reader(value) is not node:
            return f"{value.name} has other readers"
        reason = why_not_unscaled(node, 0) or self._why_no_factor(node, str(value.name))
        return reason or _Pair(source, node)

    def rewrite(self, found: _Pair, edit: Edit) -> None:
        factor = self._factor(found.conv)
        divide(edit.graph, found.source, factor, edit.changes)
        unscale(edit.graph, found.conv, factor)

    def _why_no_factor(self, conv: ir.Node, name: str) -> str | None:
        sizes = _weight_sizes(conv)
        reason = why_no_range(self.ranges, name, len(sizes))
        if reason is None and not (sizes.any() and self.ranges[name].any()):
            return "its weights or its inputs are zero everywhere"
        return reason

    def _factor(self, conv: ir.Node) -> Float:
        """Return d, (C,)."""
        ranges = self.ranges[str(conv.inputs[0].name)]  # type: ignore[union-attr]
        factor = floored(ranges) ** self.alpha / floored(_weight_sizes(conv)) ** (1 - self.alpha)
        return factor.astype(np.float32)


def _weight_sizes(conv: ir.Node) -> Double:
    """Return the largest absolute weight that reads each input channel, (C,)."""
    columns = np.abs(columns_of(conv))
    return np.asarray(columns.max(axis=(1, *range(3, columns.ndim)))).ravel()

"""Move the spread of channel ranges from the inputs of a convolution into its weights.

Whatever makes channel c is divided by d_c > 0 and the weights that read it are multiplied by d_c. The division passes a
ReLU, relu(s·x + t)/d = relu((s/d)·x + t/d), and a pool, so it reaches the norm before conv1, conv1 itself before conv2,
and the norm before a transition's convolution. With

    d_c = range_c^α / |w_c|^(1−α),   |w_c| the largest absolute weight that reads channel c,

activations and weights share what is hard to quantize: all of it goes into the weights at α = 1, all into the
activations at α = 0. This is the migration of SmoothQuant (Xiao et al. 2023, https://arxiv.org/abs/2211.10438) and, at
α = 0.5, near the optimum of cross-layer equalization (Nagel et al. 2019, https://arxiv.org/abs/1906.04721). The algebra
of each operator is in `rescale.py`. Both sizes are held at 10⁻³ of their largest or more, so that d stays positive.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import (
    Float,
    GraphPass,
    PassOutcome,
    graph_passes,
    is_operator,
    only_reader,
)
from densenet_deploy.graph.ranges import Ranges, floored, why_no_range
from densenet_deploy.graph.rescale import (
    Double,
    Source,
    absorb,
    columns_of,
    divide,
    source_of,
    why_not_absorbed,
)
from densenet_deploy.graph.tensor_changes import TensorChanges
from densenet_deploy.options import require_range


@graph_passes.register("equalize-layer")
class EqualizeLayer(GraphPass):
    """Balance the input channels of every Conv against the weights that read them.

    Attributes:
        ranges: the largest absolute value that calibration saw, by tensor name and channel, (C,). The names of the
            Convs' inputs are needed; without any range nothing is changed.
        alpha: from 0 to 1, how much of the ranges moves into the weights.

    Raises:
        UsageError: if `alpha` is out of range.
    """

    def __init__(self, ranges: Ranges | None = None, alpha: float = 0.5) -> None:
        require_range("alpha", alpha, 0.0, 1.0)
        self.ranges: Ranges = ranges or {}
        self.alpha = alpha

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        graph, changes = model.graph, TensorChanges.of(model)
        equalized, skipped = [], []
        for conv in [node for node in graph if is_operator(node, "Conv")]:
            name = conv.name or conv.op_type
            source = self._source(graph, conv)
            if isinstance(source, str):
                skipped.append(f"{name}: {source}")
                continue
            equalized.append(name)
            factor = self._factor(conv)
            divide(graph, source, factor, changes)
            absorb(graph, conv, factor)
        changes.write_to(model)
        return PassOutcome.of(model, equalized, skipped)

    def _source(self, graph: ir.Graph, conv: ir.Node) -> Source | str:
        """Return what decides the scale of the input of `conv`, or a reason why that is left alone."""
        value = conv.inputs[0]
        assert value is not None
        source = source_of(value)
        if isinstance(source, str):
            return source
        if only_reader(value) is not conv:
            return f"{value.name} has other readers"
        reason = why_not_absorbed(graph, conv, 0) or self._why_no_factor(conv, str(value.name))
        return source if reason is None else reason

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

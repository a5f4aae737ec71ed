"""Give every channel of a dense block the same range, so that one scale serves the whole bus without loss.

For any d > 0, output channel c of the node that makes it is divided by d_c, and every reader multiplies it again:
cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
https://arxiv.org/abs/1906.04721), here across the Concats of a dense block, whose readers' own scales take it up for
nothing. The algebra of each operator is in `rescale.py`. d_c is the calibrated range of channel c, but at least 10⁻³ of
the bus's largest, so that a dead channel is not blown up into noise. Afterwards every other channel has range 1.

A bus with a reader or a maker that cannot be scaled, that leaves the graph, or without a range is left whole.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.bus import Bus, Segment, find_buses
from densenet_deploy.graph.graph_pass import Float, GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.ranges import Ranges, floored, why_no_range
from densenet_deploy.graph.rescale import absorb, divide, source_of, why_not_absorbed
from densenet_deploy.graph.tensor_changes import TensorChanges


@graph_passes.register("equalize-bus")
class EqualizeBus(GraphPass):
    """Divide each channel of every bus by its range and undo it in all readers.

    Attributes:
        ranges: the largest absolute value that calibration saw, by tensor name and channel, (C,). The names of the
            buses' segments are needed; without any range nothing is changed.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges: Ranges = ranges or {}

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        buses = find_buses(model.graph)
        changes = TensorChanges.of(model)
        equalized, skipped = [], list(buses.refused)
        for bus in buses.found:
            reason = self._why_not(model.graph, bus)
            if reason is not None:
                skipped.append(f"{bus.name}: {reason}")
                continue
            equalized.append(bus.name)
            self._equalize(model.graph, bus, changes)
        changes.write_to(model)
        return PassOutcome.of(model, equalized, skipped)

    def _why_not(self, graph: ir.Graph, bus: Bus) -> str | None:
        """Say why `bus` is left alone, or None if everything that makes and reads it can be scaled."""
        if bus.outputs:
            return f"{bus.outputs[0].name} leaves the graph"
        for segment in bus.segments:
            source = source_of(segment.value)
            reason = source if isinstance(source, str) else why_no_range(self.ranges, segment.name, segment.channels)
            if reason is not None:
                return reason
        for reader in bus.readers:
            is_inside = reader.node.graph is graph
            reason = why_not_absorbed(reader.node, reader.index) if is_inside else "sits in a subgraph"
            if reason is not None:
                return f"{reader.node.name or reader.node.op_type} reads it and {reason}"
        return None if any(self.ranges[segment.name].any() for segment in bus.segments) else "it is zero everywhere"

    def _equalize(self, graph: ir.Graph, bus: Bus, changes: TensorChanges) -> None:
        sizes = floored(np.concatenate([self.ranges[segment.name] for segment in bus.segments])).astype(np.float32)
        for segment in bus.segments:
            source = source_of(segment.value)
            assert not isinstance(source, str)
            divide(graph, source, _part(sizes, segment), changes)
        for concat in bus.concats:
            changes.scale(graph, concat.value, _part(sizes, concat))
        for reader in bus.readers:
            absorb(graph, reader.node, _part(sizes, reader.segment))


def _part(sizes: Float, segment: Segment) -> Float:
    return sizes[segment.offset : segment.offset + segment.channels]

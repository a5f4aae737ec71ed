"""Give every channel of a dense block the same range, so that one scale serves the whole bus without loss.

For any d > 0, output channel c of the node that makes it is divided by d_c, and every reader multiplies it again:
cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
https://arxiv.org/abs/1906.04721), here across the Concats of a dense block: the readers' own scales absorb it at no
cost. The algebra of each operator is in `rescale.py`. d_c is the calibrated range of channel c, but at least 10⁻³ of
the bus's largest, so that a dead channel is not amplified into noise. Afterwards every other channel has range 1.

A bus is skipped if a reader or a maker cannot be scaled, if it leaves the graph, or if a range is missing.
"""

from __future__ import annotations

import numpy as np

from densenet_deploy.graph.bus import Bus, Reader, Segment
from densenet_deploy.graph.graph_pass import BusPass, Edit, graph_passes
from densenet_deploy.graph.rescale import Ranges, divide, floored, source_of, unscale, why_no_range, why_not_unscaled


@graph_passes.register("equalize-bus")
class EqualizeBus(BusPass):
    """Divide each channel of every bus by its range and undo it in all readers.

    Attributes:
        ranges: the largest absolute value that calibration saw, by tensor name and channel, (C,). The names of the
            buses' segments are needed; without any range nothing is changed.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges: Ranges = ranges or {}

    def why_not_segment(self, segment: Segment) -> str | None:
        source = source_of(segment.value)
        return source if isinstance(source, str) else why_no_range(self.ranges, segment.name, segment.channels)

    def why_not_reader(self, reader: Reader) -> str | None:
        return why_not_unscaled(reader.node, reader.index)

    def why_not_needed(self, bus: Bus) -> str | None:
        return None if any(self.ranges[segment.name].any() for segment in bus.segments) else "it is zero everywhere"

    def rewrite(self, bus: Bus, edit: Edit) -> None:
        sizes = floored(np.concatenate([self.ranges[segment.name] for segment in bus.segments])).astype(np.float32)
        for segment in bus.segments:
            source = source_of(segment.value)
            assert not isinstance(source, str)
            divide(edit.graph, source, segment.of(sizes), edit.changes)
        for concat in bus.concats:
            edit.changes.scale(edit.graph, concat.value, concat.of(sizes))
        for reader in bus.readers:
            unscale(edit.graph, reader.node, reader.segment.of(sizes))

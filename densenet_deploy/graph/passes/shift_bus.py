"""Shift every channel of a dense block so that its range begins at zero: codes of a bus then need no sign.

For any c, c_i is added to output channel i of the node that makes it, and every reader takes it away again; the algebra
of each operator is in `shift.py`. With c the negative of the smallest value that calibration saw, or that any reader
tells from smaller ones (`needed_ranges.py`), a channel uses all 256 codes for values that matter, where codes around
zero spend half of them on a side that may be short or empty. Run it before `equalize-bus`, which then divides every
channel by the width of its range.

A segment that comes out of a ReLU begins at zero already. A bus with another segment or a reader that cannot be
shifted, that leaves the graph, or without a range is left whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.bus import Bus, Segment, find_buses
from densenet_deploy.graph.graph_pass import Float, GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.rescale import source_of
from densenet_deploy.graph.shift import absorb, shift, why_not_absorbed, why_not_shifted
from densenet_deploy.graph.tensor_changes import TensorChanges


@graph_passes.register("shift-bus")
class ShiftBus(GraphPass):
    """Take the smallest value of each channel of every bus away and give it back in all readers.

    Attributes:
        lowest: the smallest value to represent, by tensor name and channel, (C,). The names of the buses' segments are
            needed; without any nothing is changed.
    """

    def __init__(self, lowest: Mapping[str, Float] | None = None) -> None:
        self.lowest: Mapping[str, Float] = lowest or {}

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        buses = find_buses(model.graph)
        changes = TensorChanges.of(model)
        shifted, skipped = [], list(buses.refused)
        for bus in buses.found:
            reason = self._why_not(model.graph, bus)
            if reason is not None:
                skipped.append(f"{bus.name}: {reason}")
                continue
            shifted.append(bus.name)
            self._shift(model.graph, bus, changes)
        changes.write_to(model)
        return PassOutcome.of(model, shifted, skipped)

    def _why_not(self, graph: ir.Graph, bus: Bus) -> str | None:
        """Say why `bus` is left alone, or None if everything that makes and reads it can be shifted."""
        if bus.outputs:
            return f"{bus.outputs[0].name} leaves the graph"
        for segment in bus.segments:
            reason = self._why_not_segment(segment)
            if reason is not None:
                return reason
        for reader in bus.readers:
            is_inside = reader.node.graph is not graph
            reason = "sits in a subgraph" if is_inside else why_not_absorbed(reader.node, reader.index)
            if reason is not None:
                return f"{reader.node.name or reader.node.op_type} reads it and {reason}"
        return None if any(self._amount(segment).any() for segment in bus.segments) else "it begins at zero everywhere"

    def _why_not_segment(self, segment: Segment) -> str | None:
        lowest = self.lowest.get(segment.name)
        if lowest is None or lowest.shape != (segment.channels,) or not np.isfinite(lowest).all():
            return f"no smallest value of each channel of {segment.name} is given"
        reason = _why_not_shifted(segment)
        return None if reason is None or lowest.min() >= 0 else f"{segment.name} cannot be shifted: {reason}"

    def _amount(self, segment: Segment) -> Float:
        """What is added to each channel of `segment`, (C,): nothing where it begins at zero and cannot be shifted."""
        lowest = self.lowest[segment.name].astype(np.float32)
        return np.zeros_like(lowest) if _why_not_shifted(segment) is not None else -lowest

    def _shift(self, graph: ir.Graph, bus: Bus, changes: TensorChanges) -> None:
        amounts = np.concatenate([self._amount(segment) for segment in bus.segments])
        for segment in bus.segments:
            source, part = source_of(segment.value), _part(amounts, segment)
            if part.any() and not isinstance(source, str):
                shift(graph, source, part, changes)
        for concat in bus.concats:
            changes.shift(graph, concat.value, _part(amounts, concat))
        for reader in bus.readers:
            absorb(graph, reader.node, _part(amounts, reader.segment))


def _why_not_shifted(segment: Segment) -> str | None:
    source = source_of(segment.value)
    return source if isinstance(source, str) else why_not_shifted(source)


def _part(amounts: Float, segment: Segment) -> Float:
    return amounts[segment.offset : segment.offset + segment.channels]

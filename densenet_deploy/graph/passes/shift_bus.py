"""Shift every channel of a dense block so that its range begins at zero: quantized values then need no sign.

For any c, c_i is added to output channel i of the node that makes it, and every reader subtracts it again; the algebra
of each operator is in `rescale.py`. With c the negative of the smallest value that calibration saw, or that any reader
tells from smaller ones (`bus.py`), a channel uses all 256 quantized values where it matters; around zero, half of them
would serve a side that may be short or empty. Run it before `equalize-bus`, which then divides every channel by the
width of its range.

A segment that comes out of a ReLU begins at zero already. A bus is skipped if another segment or a reader cannot be
shifted, if it leaves the graph, or if a range is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from densenet_deploy.graph.bus import Bus, Reader, Segment
from densenet_deploy.graph.graph_pass import BusPass, Edit, graph_passes
from densenet_deploy.graph.nodes import Float
from densenet_deploy.graph.rescale import shift, source_of, unshift, why_not_shifted, why_not_unshifted


@graph_passes.register("shift-bus")
class ShiftBus(BusPass):
    """Subtract the smallest value of each channel of every bus and add it again in all readers.

    Attributes:
        lowest: the smallest value to represent, by tensor name and channel, (C,). The names of the buses' segments are
            needed; without any nothing is changed.
    """

    def __init__(self, lowest: Mapping[str, Float] | None = None) -> None:
        self.lowest: Mapping[str, Float] = lowest or {}

    def why_not_segment(self, segment: Segment) -> str | None:
        lowest = self.lowest.get(segment.name)
        if lowest is None or lowest.shape != (segment.channels,) or not np.isfinite(lowest).all():
            return f"no smallest value of each channel of {segment.name} is given"
        reason = _why_not_shifted(segment)
        return None if reason is None or lowest.min() >= 0 else f"{segment.name} cannot be shifted: {reason}"

    def why_not_reader(self, reader: Reader) -> str | None:
        return why_not_unshifted(reader.node, reader.index)

    def why_not_needed(self, bus: Bus) -> str | None:
        return None if any(self._amount(segment).any() for segment in bus.segments) else "it begins at zero everywhere"

    def rewrite(self, bus: Bus, edit: Edit) -> None:
        amounts = np.concatenate([self._amount(segment) for segment in bus.segments])
        for segment in bus.segments:
            amount = segment.of(amounts)
            if amount.any():
                source = source_of(segment.value)
                assert not isinstance(source, str)
                shift(edit.graph, source, amount, edit.changes)
        for concat in bus.concats:
            edit.changes.shift(edit.graph, concat.value, concat.of(amounts))
        for reader in bus.readers:
            unshift(edit.graph, reader.node, reader.segment.of(amounts))

    def _amount(self, segment: Segment) -> Float:
        """Return what to add to each channel of `segment`, (C,): zero where it begins at zero and cannot be shifted."""
        lowest = self.lowest[segment.name].astype(np.float32)
        return np.zeros_like(lowest) if _why_not_shifted(segment) is not None else -lowest


def _why_not_shifted(segment: Segment) -> str | None:
    source = source_of(segment.value)
    return source if isinstance(source, str) else why_not_shifted(source)

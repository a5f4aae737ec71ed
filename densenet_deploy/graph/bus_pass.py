"""A graph pass that rewrites bus by bus: all that makes and reads the channels of a dense block, or nothing of it.

Such a pass says why a segment or a reader cannot take part, and rewrites a bus of which all can::

    @graph_passes.register("negate-bus")
    class NegateBus(BusPass):
        def why_not_segment(self, segment: Segment) -> str | None: ...
        def why_not_reader(self, reader: Reader) -> str | None: ...
        def why_not_needed(self, bus: Bus) -> str | None: ...
        def rewrite(self, bus: Bus, edit: Edit) -> None: ...
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import onnx_ir as ir

from densenet_deploy.graph.bus import Bus, Reader, Segment, find_buses
from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome
from densenet_deploy.graph.node_pass import Edit


class BusPass(GraphPass):
    """One rewrite of whole buses; one that leaves the graph, or is read inside a subgraph, is left alone."""

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place."""
        buses, edit = find_buses(model.graph), Edit(model)
        changed, skipped = [], list(buses.refused)
        for bus in buses.found:
            reason = next(self._reasons(model.graph, bus), None)
            if reason is not None:
                skipped.append(f"{bus.name}: {reason}")
                continue
            changed.append(bus.name)
            self.rewrite(bus, edit)
        edit.finish()
        return PassOutcome.of(model, changed, skipped)

    def _reasons(self, graph: ir.Graph, bus: Bus) -> Iterator[str]:
        """Yield every reason to leave `bus` alone."""
        yield from (f"{output.name} leaves the graph" for output in bus.outputs)
        yield from filter(None, map(self.why_not_segment, bus.segments))
        for reader in bus.readers:
            is_inside = reader.node.graph is graph
            reason = self.why_not_reader(reader) if is_inside else "sits in a subgraph"
            if reason is not None:
                yield f"{reader.node.name or reader.node.op_type} reads it and {reason}"
        needless = self.why_not_needed(bus)
        if needless is not None:
            yield needless

    @abstractmethod
    def why_not_segment(self, segment: Segment) -> str | None:
        """Say why what makes `segment` cannot be rewritten, or None if it can."""

    @abstractmethod
    def why_not_reader(self, reader: Reader) -> str | None:
        """Say why `reader` cannot be rewritten, in words that follow its name, or None if it can."""

    @abstractmethod
    def why_not_needed(self, bus: Bus) -> str | None:
        """Say why there is nothing to do for `bus`, or None; all of it can be rewritten."""

    @abstractmethod
    def rewrite(self, bus: Bus, edit: Edit) -> None:
        """Rewrite `bus`."""

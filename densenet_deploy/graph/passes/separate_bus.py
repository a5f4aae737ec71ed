"""Put a norm that changes nothing where a bus meets a node that cannot take a scale or a shift.

`shift-bus` and `equalize-bus` change the constants around a bus, and skip one if a single maker or reader has no
constants to change. Networks that people built on have such nodes: segments that come out of a SiLU, a PReLU, a gate
(squeeze-and-excitation) or a skip connection, and blocks whose result a gate or a pool reads, or that leave the graph.
A BatchNormalization with scale 1 and shift 0 is the identity, and its constants can be changed:

    segment:  x = Mul(a, gate), c = Concat(…, x)   becomes   x = Mul(a, gate), x' = Norm(x), c = Concat(…, x')
    reader:   c = Concat(…), y = Sigmoid(c)        becomes   c = Concat(…), c' = Norm(c), y = Sigmoid(c')

Nodes outside the bus read the segment itself, as before. A norm costs one multiplication and one addition for each
value; a segment is some 32 channels, and backends compute it together with the operator before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.bus import Reader, Segment, find_buses
from densenet_deploy.graph.graph_pass import Edit, GraphPass, PassOutcome, graph_passes
from densenet_deploy.graph.nodes import Float, new_initializer, new_node, unused_name
from densenet_deploy.graph.rescale import source_of, why_not_shifted, why_not_unscaled

_ON_BUS: Final = ":bus"
_READ: Final = ":read"


@graph_passes.register("separate-bus")
class SeparateBus(GraphPass):
    """Insert norms so that the channels of every bus can be rescaled, and shifted where its readers allow it.

    Attributes:
        lowest: the smallest value of each channel by tensor name, (C,). A segment without one, or with none below
            zero, needs no shift.
    """

    def __init__(self, lowest: Mapping[str, Float] | None = None) -> None:
        self.lowest: Mapping[str, Float] = lowest or {}

    def call(self, model: ir.Model) -> PassOutcome:
        edit, changed = Edit(model), []
        for bus in find_buses(model.graph).found:
            others = [reader for reader in bus.readers if _is_outside(reader, model.graph)]
            segments = [segment for segment in bus.segments if self._is_apart(segment, others)]
            concats = [concat for concat in bus.concats if _is_read_by_others(concat, others)]
            for segment in segments:
                _let_bus_read(edit, segment, others)
            for concat in concats:
                _let_others_read(edit, concat, others)
            changed += [str(tensor.value.name) for tensor in (*segments, *concats)]
        edit.finish()
        return PassOutcome.of(model, changed)

    def _is_apart(self, segment: Segment, others: Collection[Reader]) -> bool:
        """Whether the bus needs a tensor of its own in the place of `segment`."""
        source, lowest = source_of(segment.value), self.lowest.get(segment.name)
        if isinstance(source, str) or _is_read_by_others(segment, others):
            return True
        return lowest is not None and lowest.min() < 0 and why_not_shifted(source) is not None


def _is_outside(reader: Reader, graph: ir.Graph) -> bool:
    return reader.node.graph is not graph or why_not_unscaled(reader.node, reader.index) is not None


def _is_read_by_others(tensor: Segment, others: Collection[Reader]) -> bool:
    return tensor.value.is_graph_output() or any(reader.segment == tensor for reader in others)


def _let_bus_read(edit: Edit, segment: Segment, others: Collection[Reader]) -> None:
    """Insert a norm between `segment` and everything on the bus that reads it."""
    value, outside = segment.value, {(reader.node, reader.index) for reader in others}
    uses = [use for use in value.uses() if (use.node, use.idx) not in outside]
    result = _norm_after(edit.graph, value, segment.channels, _ON_BUS)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    edit.changes.copy(str(result.name), str(value.name))


def _let_others_read(edit: Edit, concat: Segment, others: Collection[Reader]) -> None:
    """Insert a norm between `concat` and its readers outside the bus; an output of the graph is one of them."""
    value, graph = concat.value, edit.graph
    result = _norm_after(graph, value, concat.channels, _READ)
    for reader in others:
        if reader.segment == concat:
            reader.node.replace_input_with(reader.index, result)
    if value.is_graph_output():
        name = str(value.name)
        graph.outputs[:] = [result if output is value else output for output in graph.outputs]
        value.name = unused_name(graph, f"{name}{_ON_BUS}")
        result.name = name
        edit.changes.copy(str(value.name), name)


def _norm_after(graph: ir.Graph, value: ir.Value, channels: int, ending: str) -> ir.Value:
    """Insert a BatchNormalization that changes nothing after the maker of `value`, and return its output."""
    name = unused_name(graph, f"{value.name}{ending}")
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    numbers = {"scale": ones, "shift": zeros, "mean": zeros, "variance": ones}
    inputs = [new_initializer(graph, f"{name}.{role}", array) for role, array in numbers.items()]
    norm = new_node("BatchNormalization", name, [value, *inputs], [ir.AttrFloat32("epsilon", 0.0)])
    maker, result = value.producer(), norm.outputs[0]
    if maker is None:
        graph.insert_before(graph[0], norm)
    else:
        graph.insert_after(maker, norm)
    result.type, result.shape = value.type, value.shape
    return result

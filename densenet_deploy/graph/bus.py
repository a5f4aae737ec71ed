"""Find the buses of a graph: the concatenated features of each dense block, with their makers and readers.

A dense block is written as many Concats: flat lists that grow by one tensor per layer, or each the one before and a
new tensor. Either way they hold channels of one sequence, the bus, most often contiguous runs of it. A bus is a maximal
group of Concats along axis 1 that share inputs or feed each other. A feature map outside of all Concats that a norm
reads is a bus of one tensor: what is said of the readers of a bus holds for it too.

Readers of a bus need not tell all of its values apart. A norm and its ReLU, relu(s·x + t), give zero for every x on one
side of θ = −t/s: below it for s > 0, above for s < 0. So a channel needs no value below the smallest θ of its readers
if all of them have s > 0, and none above the largest if all have s < 0; a reader with s = 0 needs none at all.
Quantized values may end there: saturation is what all readers would have done anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.nodes import (
    Double,
    Float,
    channels_of,
    is_operator,
    only_reader,
    rank_of,
    scale_and_shift,
    why_not_affine,
)

Numbers = TypeVar("Numbers", bound=npt.NDArray[np.floating[Any]])


@dataclass(frozen=True)
class Segment:
    """A tensor on a bus: channel i of it is the channel `places[i]` of the bus."""

    value: ir.Value
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """The tensor's name."""
        return str(self.value.name)

    @property
    def channels(self) -> int:
        """How many channels the tensor has."""
        return len(self.places)

    def of(self, channels: Numbers) -> Numbers:
        """Return the part of `channels`, one number for each channel of the bus, that belongs to this tensor."""
        return cast("Numbers", channels[list(self.places)])


@dataclass(frozen=True)
class Reader:
    """A node other than a Concat of the bus that reads `segment` as its input number `index`."""

    node: ir.Node
    index: int
    segment: Segment


@dataclass(frozen=True)
class Bus:
    """The features of one dense block.

    Attributes:
        segments: the tensors appended, in channel order; none of them is made by a Concat.
        concats: the outputs of the Concats, in execution order; each holds some of the segments. A bus of one tensor
            has none.
        readers: all other nodes that read a segment or a Concat, in no particular order.
    """

    segments: tuple[Segment, ...]
    concats: tuple[Segment, ...]
    readers: tuple[Reader, ...]

    @property
    def tensors(self) -> tuple[Segment, ...]:
        """Every tensor that holds channels of the bus."""
        return self.segments + self.concats

    @property
    def channels(self) -> int:
        """How many channels the whole bus has."""
        return sum(segment.channels for segment in self.segments)

    @property
    def name(self) -> str:
        """The name of the first tensor that holds most of the bus; of a dense block, all of it."""
        return max(self.concats or self.segments, key=lambda tensor: len(set(tensor.places))).name

    @property
    def outputs(self) -> tuple[Segment, ...]:
        """The tensors that leave the graph."""
        return tuple(tensor for tensor in self.tensors if tensor.value.is_graph_output())


class Buses(NamedTuple):
    """The buses of a graph in execution order, and why other groups of Concats are not buses, a sentence each."""

    found: tuple[Bus, ...]
    refused: tuple[str, ...]


Runs = Mapping[ir.Value, tuple[ir.Value, ...]]
"""For the output of each Concat, the tensors that it holds side by side, none of them made by a Concat."""


def find_buses(graph: ir.Graph) -> Buses:
    """Return the buses of `graph`."""
    concats = channel_concats(graph)
    runs = runs_of(concats)
    found: list[Bus] = []
    refused: list[str] = []
    joined: set[ir.Value] = set()
    for group in connected_concats(concats):
        parts = {value: runs[value] for node in group for value in node.outputs}
        joined |= {*parts, *(leaf for part in parts.values() for leaf in part)}
        reason = _why_not_bus(parts)
        if reason is None:
            found.append(_bus(parts))
        else:
            refused.append(f"{group[-1].outputs[0].name}: {reason}")
    found += (bus for value, bus in _buses_of_one(graph).items() if value not in joined)
    order = {value: place for place, value in enumerate(value for node in graph for value in node.outputs)}
    in_order = sorted(found, key=lambda bus: order[(bus.concats or bus.segments)[0].value])
    return Buses(tuple(in_order), tuple(refused))


def _buses_of_one(graph: ir.Graph) -> dict[ir.Value, Bus]:
    """Return a bus for every feature map made in `graph` that a norm of constants reads."""
    found: dict[ir.Value, Bus] = {}
    for node in graph:
        value = node.inputs[0] if is_operator(node, "BatchNormalization") and why_not_affine(node) is None else None
        if value is None or value.producer() is None or rank_of(value) != 4:
            continue
        segment = Segment(value, tuple(range(len(scale_and_shift(node)[0]))))
        found[value] = Bus((segment,), (), _readers((segment,), ()))
    return found


def channel_concats(graph: ir.Graph) -> list[ir.Node]:
    """Return the Concats of `graph` along axis 1, in execution order."""
    return [node for node in graph if is_operator(node, "Concat") and _joins_channels(node)]


def runs_of(concats: Iterable[ir.Node]) -> Runs:
    """Return what each of `concats`, in execution order, holds."""
    runs: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in concats:
        inputs = (value for value in node.inputs if value is not None)
        runs[node.outputs[0]] = tuple(leaf for value in inputs for leaf in runs.get(value, (value,)))
    return runs


def _joins_channels(concat: ir.Node) -> bool:
    axis = concat.attributes.get_int("axis", 1)
    if axis >= 0:
        return axis == 1
    rank = rank_of(concat.outputs[0])
    return rank is not None and rank + axis == 1


def connected_concats(concats: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Group Concats that share an input or feed each other, in execution order, the groups by their first."""
    groups: list[tuple[list[ir.Node], set[ir.Value | None]]] = []
    for node in concats:
        members, values = [node], {*node.inputs, *node.outputs}
        joined = [group for group in groups if group[1] & values]
        groups = [group for group in groups if not group[1] & values]
        for other, others in joined:
            members, values = other + members, values | others
        groups.append((members, values))
    order = {node: place for place, node in enumerate(concats)}
    ordered = (sorted(members, key=order.__getitem__) for members, _ in groups)
    return sorted(ordered, key=lambda group: order[group[0]])


def _why_not_bus(parts: Runs) -> str | None:
    """Say why the Concats `parts` are not a bus, or None if they are."""
    leaves = _leaves(parts)
    if max(map(len, parts.values())) < 2:
        return "it holds one tensor"
    if rank_of(leaves[0]) == 2:
        return "it joins rows of numbers, not feature maps"
    unknown = next((value for value in leaves if channels_of(value) is None), None)
    return f"the number of channels of {unknown.name} is unknown" if unknown is not None else None


def _leaves(parts: Runs) -> tuple[ir.Value, ...]:
    """Return every tensor that the Concats hold once, those of the longest Concat first and in its order."""
    longest = max(parts.values(), key=len)
    return tuple(dict.fromkeys((*longest, *(leaf for part in parts.values() for leaf in part))))


def _bus(parts: Runs) -> Bus:
    places: dict[ir.Value, tuple[int, ...]] = {}
    offset = 0
    for value in _leaves(parts):
        channels = channels_of(value)
        assert channels is not None
        places[value] = tuple(range(offset, offset + channels))
        offset += channels
    segments = tuple(Segment(value, taken) for value, taken in places.items())
    concats = tuple(Segment(value, tuple(p for leaf in part for p in places[leaf])) for value, part in parts.items())
    return Bus(segments, concats, _readers(segments, concats))


def _readers(segments: Sequence[Segment], concats: Sequence[Segment]) -> tuple[Reader, ...]:
    makers = {concat.value.producer() for concat in concats}
    uses = ((use, tensor) for tensor in (*segments, *concats) for use in tensor.value.uses())
    return tuple(Reader(use.node, use.idx, tensor) for use, tensor in uses if use.node not in makers)


# -- which values of a bus its readers tell apart


class Needed(NamedTuple):
    """The smallest and the largest value of each channel of a bus that its readers can tell apart, (C,) each."""

    low: Double
    high: Double

    def of(self, segment: Segment) -> Needed:
        """Return what is needed of the channels of `segment`."""
        return Needed(segment.of(self.low), segment.of(self.high))

    def finite(self) -> Needed:
        """Return the same with the largest float32 instead of infinity."""
        largest = np.finfo(np.float32).max
        return Needed(np.clip(self.low, -largest, largest), np.clip(self.high, -largest, largest))


def needed_range(bus: Bus) -> Needed:
    """Return what the readers of `bus` need of each of its channels: all, from −∞ to ∞, where it is an output."""
    low, high = np.full(bus.channels, np.inf), np.full(bus.channels, -np.inf)
    parts = [(reader.segment, _needed_by(reader)) for reader in bus.readers]
    parts += [(output, _everything(output)) for output in bus.outputs]
    for tensor, needed in parts:
        places = list(tensor.places)
        np.minimum.at(low, places, needed.low)
        np.maximum.at(high, places, needed.high)
    return Needed(low, high)


def through(norm: ir.Node, needed: Needed) -> Needed:
    """Return what is needed of the output of `norm`, a BatchNormalization of constants, given that of its input.

    `needed` is finite.
    """
    scale, shift = scale_and_shift(norm)
    ends = np.stack([scale * needed.low + shift, scale * needed.high + shift])
    return Needed(ends.min(axis=0), ends.max(axis=0)).finite()


def narrowed(low: Float, high: Float, needed: Needed) -> tuple[Float, Float]:
    """Return the ranges `low` to `high`, (C,) each, cut to what is needed; one value where nothing is."""
    above = np.maximum(low, np.minimum(needed.low, high))
    below = np.minimum(high, np.maximum(needed.high, above))
    return above.astype(np.float32), below.astype(np.float32)


def _everything(tensor: Segment) -> Needed:
    return Needed(np.full(tensor.channels, -np.inf), np.full(tensor.channels, np.inf))


def _needed_by(reader: Reader) -> Needed:
    norm, everything = reader.node, _everything(reader.segment)
    if not is_operator(norm, "BatchNormalization") or why_not_affine(norm) is not None:
        return everything
    relu = only_reader(norm.outputs[0])
    if not is_operator(relu, "Relu"):
        return everything
    scale, shift = scale_and_shift(norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = -shift / scale
    return Needed(
        np.where(scale > 0, threshold, np.where(scale < 0, -np.inf, np.inf)),
        np.where(scale < 0, threshold, np.where(scale > 0, np.inf, -np.inf)),
    )

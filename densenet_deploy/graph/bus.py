"""Find the buses of a graph: the concatenated features of each dense block, with their makers and readers.

A dense block is written as many Concats: flat lists that grow by one tensor per layer, or each the one before and a
new tensor. Either way they hold runs of one sequence of channels, the bus. A bus is a maximal group of Concats along
axis 1 that share inputs or feed each other, if every one of them holds a contiguous run of the longest.

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
    """A tensor that holds the channels `offset` to `offset + channels` of its bus."""

    value: ir.Value
    offset: int
    channels: int

    @property
    def name(self) -> str:
        """The tensor's name."""
        return str(self.value.name)

    def of(self, channels: Numbers) -> Numbers:
        """Return the part of `channels`, one number for each channel of the bus, that belongs to this tensor."""
        return cast("Numbers", channels[self.offset : self.offset + self.channels])


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
        concats: the outputs of the Concats, in execution order; each holds a run of segments.
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
        """The name of the first tensor that holds the whole bus."""
        return next(concat.name for concat in self.concats if concat.channels == self.channels)

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
    """Return the buses among the Concats of `graph`."""
    concats = channel_concats(graph)
    runs = runs_of(concats)
    found: list[Bus] = []
    refused: list[str] = []
    for group in connected_concats(concats):
        parts = {value: runs[value] for node in group for value in node.outputs}
        whole = max(parts.values(), key=len)
        reason = _why_not_bus(parts, whole)
        if reason is None:
            found.append(_bus(parts, whole))
        else:
            refused.append(f"{group[-1].outputs[0].name}: {reason}")
    return Buses(tuple(found), tuple(refused))


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


def _why_not_bus(parts: Runs, whole: tuple[ir.Value, ...]) -> str | None:
    """Say why the Concats `parts`, of which `whole` is the longest, are not a bus, or None if they are."""
    if len(whole) < 2:
        return "it holds one tensor"
    if rank_of(whole[0]) == 2:
        return "it joins rows of numbers, not feature maps"
    if len(set(whole)) < len(whole):
        return "it holds a tensor twice"
    if any(_place(part, whole) is None for part in parts.values()):
        return "its Concats hold their tensors in different orders"
    unknown = next((value for value in whole if channels_of(value) is None), None)
    return f"the number of channels of {unknown.name} is unknown" if unknown is not None else None


def _place(part: tuple[ir.Value, ...], whole: tuple[ir.Value, ...]) -> int | None:
    """Return where `part` starts in `whole`, or None if it is not a contiguous run of it."""
    start = whole.index(part[0]) if part[0] in whole else len(whole)
    return start if whole[start : start + len(part)] == part else None


def _bus(parts: Runs, whole: tuple[ir.Value, ...]) -> Bus:
    segments: dict[ir.Value, Segment] = {}
    offset = 0
    for value in whole:
        channels = channels_of(value)
        assert channels is not None
        segments[value] = Segment(value, offset, channels)
        offset += channels
    concats = {value: _joined([segments[leaf] for leaf in part], value) for value, part in parts.items()}
    readers = (
        Reader(use.node, use.idx, tensor)
        for value, tensor in {**segments, **concats}.items()
        for use in value.uses()
        if use.node.outputs[0] not in concats
    )
    return Bus(tuple(segments.values()), tuple(concats.values()), tuple(readers))


def _joined(segments: Sequence[Segment], value: ir.Value) -> Segment:
    return Segment(value, segments[0].offset, sum(segment.channels for segment in segments))


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
        part = slice(tensor.offset, tensor.offset + tensor.channels)
        low[part], high[part] = np.minimum(low[part], needed.low), np.maximum(high[part], needed.high)
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

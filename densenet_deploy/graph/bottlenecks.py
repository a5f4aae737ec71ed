"""Find the bottlenecks of dense layers: a 1x1 convolution that narrows, a ReLU, and the convolution that reads it.

The channels between the two belong to that layer alone: one of them can be removed from the first convolution's outputs
and the second's inputs without any other node knowing of it. The second one appends to a bus (`graph.bus`). A norm
between them has been folded into the first by the exact passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from densenet_deploy.graph.bus import find_buses
from densenet_deploy.graph.nodes import constant, is_operator, maker, only_reader

_KERNEL_1X1 = (1, 1)


@dataclass(frozen=True)
class Bottleneck:
    """The bottleneck of one dense layer.

    Attributes:
        narrowing: the 1x1 convolution that makes the channels.
        activation: the ReLU.
        reading: the convolution that reads them, and whose output is appended.
        width: how many channels there are.
    """

    narrowing: ir.Node
    activation: ir.Node
    reading: ir.Node
    width: int

    @property
    def name(self) -> str:
        """The name of the first convolution."""
        return str(self.narrowing.name)


class Bottlenecks(NamedTuple):
    """Those of a graph in execution order, and why other layers cannot be pruned, a sentence each."""

    found: tuple[Bottleneck, ...]
    refused: tuple[str, ...]


def find_bottlenecks(graph: ir.Graph) -> Bottlenecks:
    """Return the bottlenecks of the dense layers of `graph`, whose nodes have names."""
    appended = {segment.value for bus in find_buses(graph).found if bus.concats for segment in bus.segments}
    found, refused = [], []
    for node in graph:
        if not is_operator(node, "Conv") or node.outputs[0] not in appended:
            continue
        answer = _bottleneck(node)
        if isinstance(answer, Bottleneck):
            found.append(answer)
        elif answer is not None:
            refused.append(f"{node.name}: {answer}")
    return Bottlenecks(tuple(found), tuple(refused))


def _bottleneck(reading: ir.Node) -> Bottleneck | str | None:
    """Return the bottleneck before `reading`, or why it has none that can be pruned; None of a 1x1 convolution."""
    weight = constant(reading.inputs[1])
    if weight is not None and weight.shape[2:] == _KERNEL_1X1:
        return None  # of a transition or a stem: it appends nothing of a dense layer
    activation = maker(reading.inputs[0])
    if activation is None:
        return None  # the first convolution of all
    if not is_operator(activation, "Relu"):
        return f"it reads {_described(activation)}, not the ReLU of a bottleneck"
    narrowing = maker(activation.inputs[0])
    narrow = constant(narrowing.inputs[1]) if is_operator(narrowing, "Conv") else None
    if not is_operator(narrowing, "Conv") or (narrow is not None and narrow.shape[2:] != _KERNEL_1X1):
        return f"a layer without bottleneck: its ReLU follows {_described(narrowing)}, not a 1x1 convolution"
    for value, readers in ((narrowing.outputs[0], activation), (activation.outputs[0], reading)):
        if only_reader(value) is not readers:
            return f"its bottleneck {value.name} has other readers"
    return _why_not(narrowing) or _why_not(reading) or Bottleneck(narrowing, activation, reading, len(narrow))  # type: ignore[arg-type]


def _why_not(conv: ir.Node) -> str | None:
    """Say why channels of `conv` cannot be removed, or None if they can."""
    if conv.attributes.get_int("group", 1) != 1:
        return f"{conv.name} has groups"
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{conv.name} pads by itself (auto_pad)"
    for value in conv.inputs[1:]:
        if value is None:
            continue
        if not value.is_initializer() or constant(value) is None:
            return f"the weights of {conv.name} are not float32 constants"
        if len(value.uses()) != 1:
            return f"{conv.name} shares its weights with another node"
    return None


def _described(node: ir.Node | None) -> str:
    return "an input of the graph" if node is None else f"the {node.op_type} {node.name}".rstrip()

"""What a graph pass is: an onnx-ir pass that also says what it changed and what it left alone, and why.

Adding a pass is adding a file to `passes/` with one class in it::

    @graph_passes.register("drop-dropout")
    class DropDropout(GraphPass):
        def call(self, model: ir.Model) -> PassOutcome: ...

A pass that looks at one node after the other is a `NodePass` (`node_pass.py`), which has the loop. Below are the
questions and changes of nodes and values that passes share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.registry import Registry

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

graph_passes: Registry[type[GraphPass]] = Registry("graph pass", "densenet_deploy.graph.passes")


@dataclass
class PassOutcome(ir.passes.PassResult):
    """The model, the names of the nodes that changed, and for each near miss a sentence that says why it was left."""

    changed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ir.Model, changed: Iterable[str], skipped: Iterable[str] = ()) -> PassOutcome:
        """Build the outcome of a pass that changed the nodes `changed` of `model` in place."""
        names = tuple(changed)
        return cls(model, bool(names), names, tuple(skipped))


class GraphPass(ir.passes.InPlacePass):
    """One rewrite of a graph, in place, after which the model computes what it computed before (up to rounding)."""

    @abstractmethod
    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model`."""


@dataclass(frozen=True)
class PassReport:
    """What one pass of a preset did."""

    name: str
    changed: tuple[str, ...]
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {"name": self.name, "changed": len(self.changed), "skipped": list(self.skipped)}


def apply_passes(model: ir.Model, passes: Iterable[str | GraphPass]) -> tuple[PassReport, ...]:
    """Run `passes`, given by name or made by the caller, on `model`, in place and in that order.

    What nothing reads any more is dropped at the end.

    Raises:
        UnknownNameError: if a name is no pass.
    """
    reports = []
    for item in passes:
        graph_pass = graph_passes.get(item)() if isinstance(item, str) else item
        outcome = graph_pass.call(model)
        reports.append(PassReport(_name_of(graph_pass), outcome.changed, outcome.skipped))
    RemoveUnusedNodesPass()(model)
    return tuple(reports)


def _name_of(graph_pass: GraphPass) -> str:
    """Return the name under which the pass is registered, or that of its class."""
    kind = type(graph_pass)
    return next((name for name, known in graph_passes.items().items() if known is kind), kind.__name__)


def is_operator(node: ir.Node | None, op_type: str) -> bool:
    """Whether `node` is the ONNX operator `op_type`; an operator of another domain may share the name."""
    return node is not None and node.op_type == op_type and node.domain == ""


def constant(value: ir.Value | None) -> Float | None:
    """Return the float32 numbers of a value that is an initializer, a Constant or the Identity of one, else None.

    An initializer that is listed as a graph input too is a default that a caller may override, no constant.
    """
    while value is not None and (node := value.producer()) is not None and is_operator(node, "Identity"):
        value = node.inputs[0]
    tensor = ir.convenience.get_const_tensor(value) if value is not None and not value.is_graph_input() else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return tensor.numpy()


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value` (once), or None if it is read otherwise or leaves the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def set_inputs(node: ir.Node, inputs: Sequence[ir.Value]) -> None:
    """Let `node` read exactly `inputs`."""
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def new_node(op_type: str, name: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()) -> ir.Node:
    """Make a node, not yet in a graph, whose one output is called `name` like the node itself."""
    node = ir.Node("", op_type, inputs, attributes, name=name, num_outputs=1)
    node.outputs[0].name = name
    return node


def unused_name(graph: ir.Graph, name: str) -> str:
    """Return `name`, with underscores behind it if a value of `graph` already has it."""
    taken = {value.name for value in (*graph.inputs, *(output for node in graph for output in node.outputs))}
    while name in graph.initializers or name in taken:
        name += "_"
    return name


def take_over_output(node: ir.Node, replaced: ir.Value) -> None:
    """Let the output of `node` stand, with name, type and shape, wherever `replaced` stood, and drop what made that."""
    result, maker = node.outputs[0], replaced.producer()
    name, kind, shape = replaced.name, replaced.type or result.type, replaced.shape or result.shape
    assert maker is not None
    assert maker.graph is not None
    ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
    maker.graph.remove(maker, safe=True)
    result.name, result.type, result.shape = name, kind, shape


def new_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """Add `array` to the initializers of `graph` under a name derived from `name` and return its value."""
    unique = unused_name(graph, name)
    tensor = ir.tensor(np.asarray(array), name=unique)
    value = ir.Value(name=unique, const_value=tensor)
    value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
    graph.register_initializer(value)
    return value

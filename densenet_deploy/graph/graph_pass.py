"""What a graph pass is: an onnx-ir pass that also reports what it changed, what it skipped, and why.

Adding a pass is adding a file to `passes/` with one class in it. Most passes look at one node after the other and are a
`NodePass`; a pass that rewrites all nodes around the channels of a dense block, or none, is a `BusPass`; any other is a
`GraphPass`::

    @graph_passes.register("drop-dropout")
    class DropDropout(NodePass[ir.Node]):
        op_type = "Dropout"

        def match(self, node: ir.Node) -> ir.Node | str:
            return node if len(node.outputs) == 1 else "its mask is read"

        def rewrite(self, found: ir.Node, edit: Edit) -> None: ...
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, Generic, TypeVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.graph.bus import Bus, Reader, Segment, find_buses
from densenet_deploy.graph.nodes import is_operator
from densenet_deploy.graph.tensor_changes import TensorChanges
from densenet_deploy.registry import Registry

EXACT: Final = (
    *("remove-identity", "reshape-to-flatten", "head-to-gemm", "merge-affine"),  # what other exporters write otherwise
    *("remove-single-concat", "fold-batchnorm", "pool-before-conv", "concat-incremental"),
)
"""The passes that every exported or simplified file gets, in order: they change nothing but rounding."""

Found = TypeVar("Found")

graph_passes: Registry[type[GraphPass]] = Registry("graph pass", "densenet_deploy.graph.passes")


@dataclass
class PassOutcome(ir.passes.PassResult):
    """The model, the names of the nodes that changed, and for each near miss a sentence that gives the reason."""

    changed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ir.Model, changed: Iterable[str], skipped: Iterable[str] = ()) -> PassOutcome:
        """Build the outcome of a pass that changed the nodes `changed` of `model` in place."""
        names = tuple(changed)
        return cls(model, bool(names), names, tuple(skipped))


class GraphPass(ir.passes.InPlacePass):
    """One rewrite of a graph, in place, after which the model computes the same result up to rounding.

    Calling it checks that inputs and outputs keep their names. `fold = FoldBatchNorm(); fold(model)` is one way to run
    it, `ir.passes.Sequential(...)` another, and `apply_passes` a third that returns reports.
    """

    @abstractmethod
    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model`."""

    def requires(self, model: ir.Model) -> None:
        """Remember the ends of the graph; see `ensures`."""
        self._ends = _ends(model)

    def ensures(self, model: ir.Model) -> None:
        """Check that inputs and outputs kept their names.

        Raises:
            ir.passes.PostconditionError: if not; it is a bug of the pass.
        """
        if _ends(model) != self._ends:
            raise ir.passes.PostconditionError(f"{name_of(self)} changed {self._ends} to {_ends(model)}")


def _ends(model: ir.Model) -> tuple[tuple[str | None, ...], ...]:
    return tuple(tuple(value.name for value in values) for values in (model.graph.inputs, model.graph.outputs))


@dataclass(frozen=True)
class PassReport:
    """What one pass did: see `PassOutcome`."""

    name: str
    changed: tuple[str, ...]
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {"name": self.name, "changed": len(self.changed), "skipped": list(self.skipped)}


def apply_passes(model: ir.Model, passes: Iterable[str | GraphPass]) -> tuple[PassReport, ...]:
    """Run `passes`, given by name or as objects, on `model`, in place and in that order; then drop unused nodes.

    Raises:
        UnknownNameError: if a name is not that of a pass.
        DensenetDeployError: if a pass broke its promises, which is our bug.
    """
    reports = []
    for item in passes:
        graph_pass = graph_passes.get(item)() if isinstance(item, str) else item
        try:
            outcome = graph_pass(model)
        except (ir.passes.InvariantError, ir.passes.PassError) as exc:
            raise DensenetDeployError(
                f"the pass {name_of(graph_pass)}", str(exc), "report this with the model"
            ) from exc
        assert isinstance(outcome, PassOutcome)
        reports.append(PassReport(name_of(graph_pass), outcome.changed, outcome.skipped))
    RemoveUnusedNodesPass()(model)
    return tuple(reports)


def name_of(graph_pass: GraphPass) -> str:
    """Return the name under which the pass is registered, or that of its class."""
    kind = type(graph_pass)
    return next((name for name, known in graph_passes.items().items() if known is kind), kind.__name__)


class Edit:
    """A model while a pass rewrites it: its `graph`, and the `changes` of its tensors, read when first needed."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._model = model

    @cached_property
    def changes(self) -> TensorChanges:
        """How the tensors of the model follow from those of the original."""
        return TensorChanges.of(self._model)

    def finish(self) -> None:
        """Write the changes into the model if there may be any."""
        if "changes" in vars(self):
            self.changes.write_to(self._model)


class NodePass(GraphPass, Generic[Found]):
    """One rewrite of the nodes of one operator.

    Attributes:
        op_type: the ONNX operator of the nodes that the pass looks at.
    """

    op_type: ClassVar[str]

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place, one node after the other: each sees the result of those before it."""
        edit = Edit(model)
        changed, skipped = [], []
        for node in [node for node in model.graph if self.concerns(node)]:
            name = node.name or node.op_type
            found = self.match(node)
            if isinstance(found, str):
                skipped.append(f"{name}: {found}")
                continue
            changed.append(name)
            self.rewrite(found, edit)
        edit.finish()
        return PassOutcome.of(model, changed, skipped)

    def concerns(self, node: ir.Node) -> bool:
        """Whether the pass looks at `node` at all: such a node is either rewritten or reported as skipped."""
        return is_operator(node, self.op_type)

    @abstractmethod
    def match(self, node: ir.Node) -> Found | str:
        """Return `node` with what belongs to it, or a reason to skip it; nothing is changed."""

    @abstractmethod
    def rewrite(self, found: Found, edit: Edit) -> None:
        """Rewrite what `match` found."""


class BusPass(GraphPass):
    """One rewrite of whole buses; a bus that leaves the graph, or is read inside a subgraph, is skipped."""

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
        """Yield every reason to skip `bus`."""
        yield from (f"{output.name} leaves the graph" for output in bus.outputs)
        yield from filter(None, map(self.why_not_segment, bus.segments))
        for reader in bus.readers:
            is_inside = reader.node.graph is graph
            reason = self.why_not_reader(reader) if is_inside else "is in a subgraph"
            if reason is not None:
                yield f"{reader.node.name or reader.node.op_type} reads it and {reason}"
        needless = self.why_not_needed(bus)
        if needless is not None:
            yield needless

    @abstractmethod
    def why_not_segment(self, segment: Segment) -> str | None:
        """Say why the maker of `segment` cannot be rewritten, or None if it can."""

    @abstractmethod
    def why_not_reader(self, reader: Reader) -> str | None:
        """Say why `reader` cannot be rewritten, in words that follow its name, or None if it can."""

    @abstractmethod
    def why_not_needed(self, bus: Bus) -> str | None:
        """Say why there is nothing to do for `bus`, all of which can be rewritten, or None."""

    @abstractmethod
    def rewrite(self, bus: Bus, edit: Edit) -> None:
        """Rewrite `bus`."""

"""A graph pass that rewrites node by node: it looks at each node of one operator, and rewrites it or says why not.

Such a pass reads top to bottom: which operator it looks at, what has to stand around a node, and what is done with it::

    @graph_passes.register("drop-dropout")
    class DropDropout(NodePass[ir.Node]):
        op_type = "Dropout"

        def match(self, node: ir.Node) -> ir.Node | str:
            return node if len(node.outputs) == 1 else "its mask is read"

        def rewrite(self, found: ir.Node, edit: Edit) -> None: ...
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import onnx_ir as ir

from densenet_deploy.graph.graph_pass import GraphPass, PassOutcome, is_operator
from densenet_deploy.graph.tensor_changes import TensorChanges

Found = TypeVar("Found")


class Edit:
    """A model while a pass rewrites it: its `graph`, and the `changes` of its tensors, read when first asked for."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self._model = model

    @cached_property
    def changes(self) -> TensorChanges:
        """What became of the tensors of the original model."""
        return TensorChanges.of(self._model)

    def finish(self) -> None:
        """Write the changes into the model if they were asked for."""
        if "changes" in vars(self):
            self.changes.write_to(self._model)


class NodePass(GraphPass, Generic[Found]):
    """One rewrite of the nodes of one operator.

    Attributes:
        op_type: the ONNX operator of the nodes that the pass looks at.
    """

    op_type: ClassVar[str]

    def call(self, model: ir.Model) -> PassOutcome:
        """Rewrite `model` in place, one node after the other: each sees what became of those before it."""
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
        """Whether the pass looks at `node` at all; what it looks at it either rewrites or reports as skipped."""
        return is_operator(node, self.op_type)

    @abstractmethod
    def match(self, node: ir.Node) -> Found | str:
        """Return `node` with what belongs to it, or a reason why it is left alone; nothing is changed."""

    @abstractmethod
    def rewrite(self, found: Found, edit: Edit) -> None:
        """Rewrite what `match` found."""

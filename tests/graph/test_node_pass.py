"""The loop of passes that go node by node: what is rewritten, what is skipped with a reason, what is not looked at."""

from __future__ import annotations

import onnx_ir as ir

from densenet_deploy.graph.node_pass import Edit, NodePass
from densenet_deploy.graph.tensor_changes import KEY, read_tensor_changes
from tests.graph.onnx_text import model_of, operators

CHAIN = "a = Relu(x) b = Neg(a) c = Relu(b) y = Relu(c)"


class DropRelu(NodePass[ir.Node]):
    """Drops a Relu whose result stays inside."""

    op_type = "Relu"

    def match(self, node: ir.Node) -> ir.Node | str:
        return "its output leaves the graph" if node.outputs[0].is_graph_output() else node

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        ir.convenience.replace_all_uses_with(found.outputs[0], found.inputs[0])
        edit.graph.remove(found, safe=True)


class MoveRelu(DropRelu):
    """Drops it and tells of it."""

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        edit.changes.move(str(found.inputs[0].name), str(found.outputs[0].name), "clamped no more")
        super().rewrite(found, edit)


class DropFirstRelu(DropRelu):
    """Drops a Relu that reads an input of the graph."""

    def match(self, node: ir.Node) -> ir.Node | str:
        return node if node.inputs[0].is_graph_input() else "it reads no input"


def test_nodes_are_rewritten_or_skipped_with_a_reason():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    outcome = DropRelu().call(model)
    assert outcome.modified
    assert outcome.changed == ("Relu", "Relu")
    assert outcome.skipped == ("Relu: its output leaves the graph",)
    assert operators(model) == ["Neg", "Relu"]


def test_nothing_to_look_at_changes_nothing():
    model = model_of("y = Neg(x)", "", outputs="float[N,3,5,5] y")
    outcome = DropRelu().call(model)
    assert not outcome.modified
    assert outcome.changed == outcome.skipped == ()


def test_each_node_sees_what_became_of_those_before_it():
    """The second Relu reads the input only once the first is gone."""
    model = model_of("a = Relu(x) b = Relu(a) y = Neg(b)", "", outputs="float[N,3,5,5] y")
    assert len(DropFirstRelu().call(model).changed) == 2
    assert operators(model) == ["Neg"]


def test_an_operator_of_another_domain_is_not_looked_at():
    model = model_of("y = other.Relu(x)", "", outputs="float[N,3,5,5] y")
    assert DropRelu().call(model).skipped == ()


def test_changes_of_tensors_are_written_into_the_model():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    MoveRelu().call(model)
    assert read_tensor_changes(model.metadata_props)["b"].moved == "clamped no more"


def test_a_pass_that_tells_of_no_tensor_leaves_the_metadata_alone():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    model.metadata_props[KEY] = "what another tool wrote"
    DropRelu().call(model)
    assert model.metadata_props[KEY] == "what another tool wrote"

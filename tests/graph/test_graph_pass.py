"""Passes: order, clean-up, reports, promises, and the loop of those that go node by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.errors import DensenetDeployError, UnknownNameError
from densenet_deploy.graph.bus import Bus, Reader, Segment
from densenet_deploy.graph.graph_pass import EXACT, BusPass, Edit, NodePass, apply_passes, graph_passes
from densenet_deploy.graph.tensor_changes import KEY, read_tensor_changes
from tests.graph.onnx_text import model_of, operators, outputs_of, weights


def test_the_exact_passes_are_registered_and_run_once_each():
    assert set(EXACT) <= set(graph_passes.names())
    assert len(set(EXACT)) == len(EXACT)


@pytest.mark.parametrize("kind", graph_passes.items().values(), ids=graph_passes.names())
def test_every_pass_has_its_own_file(kind):
    assert kind.__module__.startswith("densenet_deploy.graph.passes.")


def test_unused_nodes_and_initializers_are_dropped():
    model = model_of("dead = Relu(x)  y = Neg(x)", weights(unused=(4,)), outputs="float[N,3,5,5] y")
    assert apply_passes(model, ()) == ()
    assert operators(model) == ["Neg"]
    assert not model.graph.initializers


def test_a_graph_in_which_nothing_matches_comes_back_as_it_was():
    body = "a = Concat<axis=1>(x, x)  n = BatchNormalization(a, g, b, m, v)  y = Relu(n)"
    shapes = weights(g=(6,), b=(6,), m=(6,), v=(6,))
    model = model_of(body, shapes, outputs="float[N,6,5,5] y")
    text, before = ir.to_proto(model).SerializeToString(deterministic=True), outputs_of(model)
    reports = apply_passes(model, EXACT)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    np.testing.assert_array_equal(outputs_of(model), before)
    assert {report.name: (report.changed, report.skipped) for report in reports} == {
        **dict.fromkeys(("remove-identity", "reshape-to-flatten", "head-to-gemm", "merge-affine"), ((), ())),
        "remove-single-concat": ((), ()),
        "fold-batchnorm": ((), ("BatchNormalization: it follows Concat, not a Conv",)),
        "pool-before-conv": ((), ()),
        "concat-incremental": ((), ()),
    }


def test_passes_are_reported_in_their_order_with_plain_types():
    model = model_of("a = Concat<axis=1>(x)  y = Relu(a)", "", outputs="float[N,3,5,5] y")
    reports = apply_passes(model, ("fold-batchnorm", "remove-single-concat"))
    assert [report.to_json() for report in reports] == [
        {"name": "fold-batchnorm", "changed": 0, "skipped": []},
        {"name": "remove-single-concat", "changed": 1, "skipped": []},
    ]


def test_an_unknown_pass_is_named_with_the_nearest():
    model = model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y")
    with pytest.raises(UnknownNameError) as caught:
        apply_passes(model, ["fold-batch-norm"])
    assert caught.value.subject == "fold-batch-norm"
    assert "'fold-batchnorm'" in str(caught.value)


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
    """Drops it and records the change."""

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        edit.changes.move(str(found.inputs[0].name), str(found.outputs[0].name), "clamped no more")
        super().rewrite(found, edit)


class DropFirstRelu(DropRelu):
    """Drops a Relu that reads an input of the graph."""

    def match(self, node: ir.Node) -> ir.Node | str:
        return node if node.inputs[0].is_graph_input() else "it reads no input"


def test_nodes_are_rewritten_or_skipped_with_a_reason():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    outcome = DropRelu()(model)
    assert outcome.modified
    assert outcome.changed == ("Relu", "Relu")
    assert outcome.skipped == ("Relu: its output leaves the graph",)
    assert operators(model) == ["Neg", "Relu"]


def test_nothing_to_look_at_changes_nothing():
    model = model_of("y = Neg(x)", "", outputs="float[N,3,5,5] y")
    outcome = DropRelu()(model)
    assert not outcome.modified
    assert outcome.changed == outcome.skipped == ()


def test_a_node_is_called_by_its_name_and_those_after_a_skipped_one_are_looked_at():
    body = "y = Relu(x) [second] a = Relu(x) [third] z = Relu(a) b = Relu(a) q = Neg(b)"
    model = model_of(body, "", outputs="float[N,3,5,5] y, float[N,3,5,5] z, float[N,3,5,5] q")
    outcome = DropRelu()(model)
    assert outcome.skipped == ("Relu: its output leaves the graph", "third: its output leaves the graph")
    assert outcome.changed == ("second", "Relu")


def test_a_report_names_the_pass_or_its_class():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    reports = apply_passes(model, [DropRelu(), graph_passes.get("fold-batchnorm")()])
    assert [report.name for report in reports] == ["DropRelu", "fold-batchnorm"]


def test_each_node_sees_the_result_of_those_before_it():
    """The second Relu reads the input only once the first is gone."""
    model = model_of("a = Relu(x) b = Relu(a) y = Neg(b)", "", outputs="float[N,3,5,5] y")
    assert len(DropFirstRelu()(model).changed) == 2
    assert operators(model) == ["Neg"]


def test_an_operator_of_another_domain_is_not_looked_at():
    model = model_of("y = other.Relu(x)", "", outputs="float[N,3,5,5] y")
    assert DropRelu()(model).skipped == ()


def test_changes_of_tensors_are_written_into_the_model():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    MoveRelu()(model)
    assert read_tensor_changes(model.metadata_props)["b"].moved == "clamped no more"


def test_earlier_changes_of_tensors_are_kept():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    model.metadata_props[KEY] = (
        '{"c":{"of":"before","factor":[2.0],"moved":null},"z":{"of":"z","factor":null,"moved":"m"}}'
    )
    MoveRelu()(model)
    changes = read_tensor_changes(model.metadata_props)
    assert (changes["b"].of, changes["b"].factor, changes["z"].moved) == ("before", (2,), "m")


def test_a_pass_that_tells_of_no_tensor_leaves_the_metadata_alone():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    model.metadata_props[KEY] = "what another tool wrote"
    DropRelu()(model)
    assert model.metadata_props[KEY] == "what another tool wrote"


class RenameOutput(NodePass[ir.Node]):
    """Breaks the promise to keep the names of outputs."""

    op_type = "Relu"

    def match(self, node: ir.Node) -> ir.Node | str:
        return node

    def rewrite(self, found: ir.Node, edit: Edit) -> None:
        found.outputs[0].name = "renamed"


def test_a_pass_that_renames_an_output_is_our_bug():
    model = model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y")
    with pytest.raises(ir.passes.PostconditionError):
        RenameOutput()(model)
    with pytest.raises(DensenetDeployError) as caught:
        apply_passes(model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y"), [RenameOutput()])
    assert caught.value.exit_code == 1


def test_passes_run_in_a_sequence_of_onnx_ir():
    model = model_of(CHAIN, "", outputs="float[N,3,5,5] y")
    result = ir.passes.Sequential(DropRelu(), RemoveUnusedNodesPass())(model)
    assert result.modified
    assert operators(model) == ["Neg", "Relu"]


TWO_BUSES = (
    "a = Relu(x)  p = Concat<axis=1>(x, a)  n = Conv(p, w)  [act] b = Relu(n)  q = Concat<axis=1>(n, b)  y = Conv(q, v)"
)
TWO_OUTPUTS = "float[N,4,5,5] y"


class Note(BusPass):
    """Notes the buses that it would rewrite; `refuse` says of which tensor, reader or bus there is a reason not to."""

    def __init__(self, *refuse: str) -> None:
        self.refuse = refuse
        self.rewritten: list[str] = []

    def _reason(self, name: str | None) -> str | None:
        return f"refuses {name}" if name in self.refuse else None

    def why_not_segment(self, segment: Segment) -> str | None:
        return self._reason(segment.name)

    def why_not_reader(self, reader: Reader) -> str | None:
        return self._reason(reader.node.name)

    def why_not_needed(self, bus: Bus) -> str | None:
        return self._reason(bus.name)

    def rewrite(self, bus: Bus, edit: Edit) -> None:
        self.rewritten.append(bus.name)
        edit.changes.move(bus.name, bus.segments[0].name, "noted")


def _two_buses(outputs: str = TWO_OUTPUTS, body: str = TWO_BUSES, inputs: str = "float[N,3,5,5] x") -> ir.Model:
    return model_of(body, weights(w=(4, 6, 1, 1), v=(4, 8, 1, 1)), inputs, outputs)


def test_every_bus_is_rewritten_and_its_changes_are_written():
    model, note = _two_buses(), Note()
    outcome = note(model)
    assert note.rewritten == ["p", "q"]
    assert (outcome.modified, outcome.changed, outcome.skipped) == (True, ("p", "q"), ())
    assert {name: change.of for name, change in read_tensor_changes(model.metadata_props).items()} == {
        "p": "x",
        "q": "n",
    }


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (["a", "p"], "p: refuses a"),
        (["p"], "p: refuses p"),
        (["x", "a"], "p: refuses x"),
    ],
)
def test_a_bus_is_skipped_for_the_first_reason_and_the_next_is_looked_at(refuse, why):
    note = Note(*refuse)
    outcome = note(_two_buses())
    assert (outcome.changed, outcome.skipped, note.rewritten) == (("q",), (why,), ["q"])


def test_a_bus_with_a_reader_that_cannot_be_rewritten_is_skipped():
    outcome = Note("act")(_two_buses())
    assert (outcome.changed, outcome.skipped) == (("p",), ("q: act reads it and refuses act",))


def test_a_bus_that_leaves_the_graph_is_skipped():
    outcome = Note()(_two_buses(f"{TWO_OUTPUTS}, float[N,8,5,5] q"))
    assert (outcome.changed, outcome.skipped) == (("p",), ("q: q leaves the graph",))


def test_a_bus_that_is_read_in_a_subgraph_is_skipped():
    branches = ", ".join(
        f"{n}_branch = {n} () => (float[N,8,5,5] {n}_z) {{ {n}_z = Neg(q) }}" for n in ("then", "else")
    )
    outputs, inputs = f"{TWO_OUTPUTS}, float[N,8,5,5] z", "float[N,3,5,5] x, bool c"
    outcome = Note()(_two_buses(outputs, f"{TWO_BUSES}  z = If<{branches}>(c)", inputs))
    assert (outcome.changed, outcome.skipped) == (("p",), ("q: Neg reads it and is in a subgraph",))


def test_concats_that_are_no_bus_are_reported():
    outcome = Note()(_two_buses(f"{TWO_OUTPUTS}, float[N,3,5,5] z", TWO_BUSES + "  o = Concat<axis=1>(x)  z = Neg(o)"))
    assert outcome.changed == ("p", "q")
    single = Note()(model_of("o = Concat<axis=1>(x)  z = Neg(o)", "", outputs="float[N,3,5,5] z"))
    assert (single.modified, single.skipped) == (False, ("o: it holds one tensor",))

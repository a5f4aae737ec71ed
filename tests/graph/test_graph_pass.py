"""Running passes by name: order, clean-up, reports."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.errors import UnknownNameError
from densenet_deploy.graph import presets
from densenet_deploy.graph.graph_pass import apply_passes, constant, graph_passes, new_initializer, only_reader
from tests.graph.onnx_text import model_of, operators, outputs_of, weights

PRESETS = {name: value for name, value in vars(presets).items() if name.isupper()}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_name_registered_passes_once_each(preset):
    assert set(preset) <= set(graph_passes.names())
    assert len(set(preset)) == len(preset)


@pytest.mark.parametrize("kind", graph_passes.items().values(), ids=graph_passes.names())
def test_every_pass_says_what_it_does(kind):
    assert kind.__doc__
    assert kind.__module__.startswith("densenet_deploy.graph.passes.")


def test_what_nothing_reads_is_dropped():
    model = model_of("dead = Relu(x)  y = Neg(x)", weights(unused=(4,)), outputs="float[N,3,5,5] y")
    assert apply_passes(model, ()) == ()
    assert operators(model) == ["Neg"]
    assert not model.graph.initializers


def test_a_graph_in_which_nothing_matches_comes_back_as_it_was():
    body = "a = Concat<axis=1>(x, x)  n = BatchNormalization(a, g, b, m, v)  y = Relu(n)"
    shapes = weights(g=(6,), b=(6,), m=(6,), v=(6,))
    model = model_of(body, shapes, outputs="float[N,6,5,5] y")
    text, before = ir.to_proto(model).SerializeToString(deterministic=True), outputs_of(model)
    reports = apply_passes(model, presets.EXACT)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    np.testing.assert_array_equal(outputs_of(model), before)
    assert {report.name: (report.changed, report.skipped) for report in reports} == {
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
    with pytest.raises(UnknownNameError, match=r"did you mean 'fold-batchnorm'\?"):
        apply_passes(model, ["fold-batch-norm"])


def test_constants_are_float32_initializers_and_constant_nodes():
    body = "c = Constant<value = float[2] {1, 2}>()  i = Constant<value = int64[1] {1}>()  y = Relu(x)"
    model = model_of(body, weights(w=(4,)), outputs="float[N,3,5,5] y")
    node = {value.name: value for node in model.graph for value in node.outputs}
    assert constant(model.graph.initializers["w"]).shape == (4,)
    np.testing.assert_array_equal(constant(node["c"]), [1, 2])
    assert [constant(value) for value in (node["i"], node["y"], model.graph.inputs[0], None)] == [None] * 4


def test_the_only_reader_is_one_node_reading_once():
    model = model_of("a = Relu(x)  b = Neg(a)  y = Add(b, b)", "", outputs="float[N,3,5,5] y")
    relu, neg, add = model.graph
    assert only_reader(relu.outputs[0]) is neg
    assert only_reader(neg.outputs[0]) is None
    assert only_reader(add.outputs[0]) is None


@pytest.mark.parametrize("taken", ["x", "a", "w"])
def test_new_initializers_avoid_every_name_in_use(taken):
    model = model_of("a = Relu(x)  y = Neg(a)", weights(w=(4,)), outputs="float[N,3,5,5] y")
    assert new_initializer(model.graph, taken, np.zeros(2, np.float32)).name == f"{taken}_"

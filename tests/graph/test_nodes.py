"""Questions about nodes and values, and new numbers for convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.nodes import (
    constant,
    conv_before,
    new_initializer,
    only_reader,
    pads,
    set_bias,
    set_weight_and_bias,
    weight_and_bias,
)
from tests.graph.onnx_text import model_of, outputs_of, weights


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


PLAIN = weights(w=(4, 3, 1, 1))
BIASED = weights(w=(4, 3, 1, 1), b=(4,))


def conv_of(body: str, initializers: str, **more: str):
    """A graph of one Conv whose weight, as in an export, is called c.weight, and that Conv."""
    model = model_of(body, initializers, **more)
    conv = model.graph[0]
    conv.inputs[1].name = "c.weight"
    return model, conv


@pytest.mark.parametrize(
    ("attributes", "padded"),
    [
        ("", False),
        ("<pads=[0,0,0,0]>", False),
        ('<auto_pad="VALID">', False),
        ("<pads=[0,0,1,0]>", True),
        ('<auto_pad="SAME_UPPER">', True),
    ],
)
def test_whether_it_pads(attributes, padded):
    _, conv = conv_of(f"y = Conv{attributes}(x, w)", PLAIN, outputs="float[N,4,A,B] y")
    assert pads(conv) is padded


def test_a_missing_bias_is_zero():
    _, conv = conv_of("y = Conv(x, w)", PLAIN)
    weight, bias = weight_and_bias(conv)
    np.testing.assert_array_equal(weight, constant(conv.inputs[1]))
    assert bias.tolist() == [0, 0, 0, 0]


def test_a_bias_that_a_caller_gives_is_not_known():
    _, conv = conv_of("y = Conv(x, w, b)", PLAIN, inputs="float[N,3,5,5] x, float[4] b")
    assert weight_and_bias(conv) is None


def test_weights_that_a_caller_gives_are_not_known():
    _, conv = conv_of("y = Conv(x, w)", "", inputs="float[N,3,5,5] x, float[4,3,1,1] w")
    assert weight_and_bias(conv) is None


@pytest.mark.parametrize(("arguments", "initializers"), [("w", PLAIN), ("w, b", BIASED)])
def test_new_numbers_are_computed_with_and_named_after_the_weight(arguments, initializers):
    model, conv = conv_of(f"y = Conv(x, {arguments})", initializers)
    weight, bias = weight_and_bias(conv)
    (before,) = outputs_of(model)
    set_weight_and_bias(model.graph, conv, 2 * weight, 2 * bias + 1, "doubled")
    assert [value.name for value in conv.inputs[1:]] == ["c.doubled.weight", "c.doubled.bias"]
    np.testing.assert_allclose(outputs_of(model)[0], 2 * before + 1, rtol=1e-5, atol=1e-5)  # float32 rounding


def test_a_bias_alone_leaves_the_weight():
    model, conv = conv_of("y = Conv(x, w)", PLAIN)
    (before,) = outputs_of(model)
    set_bias(model.graph, conv, np.float64([1, 2, 3, 4]), "shifted")
    assert [value.name for value in conv.inputs[1:]] == ["c.weight", "c.shifted.bias"]
    shift = np.float32([1, 2, 3, 4]).reshape(4, 1, 1)
    np.testing.assert_allclose(outputs_of(model)[0], before + shift, rtol=1e-5, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("c = Conv(x, w) y = Relu(c)", "Conv"),
        ("c = Conv(x, w) d = Relu(c) y = Add(c, d)", "its Conv has other readers"),
        ("c = Conv(x, w) d = Neg(c) y = Relu(d)", "it follows Neg, not a Conv"),
        ("d = Relu(x) y = Conv(d, w)", "it follows an input, not a Conv"),
    ],
)
def test_the_conv_that_a_node_alone_reads(body, answer):
    model = model_of(body, PLAIN)
    found = conv_before(next(node for node in model.graph if node.op_type == "Relu"))
    assert (found if isinstance(found, str) else found.op_type) == answer

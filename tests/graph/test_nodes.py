"""Questions about nodes and values, and new numbers for convolutions."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.nodes import (
    averages_whole_windows,
    channels_of,
    constant,
    conv_before,
    integers,
    is_operator,
    names_known,
    new_initializer,
    new_node,
    only_reader,
    pads,
    rank_of,
    remove_initializer,
    scale_and_shift,
    set_bias,
    set_inputs,
    set_weight_and_bias,
    spread,
    take_over_output,
    unused_name,
    weight_and_bias,
    why_not_affine,
)
from tests.graph.onnx_text import HEADER, constants, maker_of, model_of, operators, outputs_of, value_named, weights


def test_constants_are_float32_initializers_and_constant_nodes_and_their_identities():
    body = "c = Constant<value = float[2] {1, 2}>()  i = Identity(w)  j = Identity(i)  y = Relu(x)"
    model = model_of(body, constants(w=[3, 4]), outputs="float[N,3,5,5] y")
    assert [constant(value_named(model, name)).tolist() for name in "cwij"] == [[1, 2], [3, 4], [3, 4], [3, 4]]


def test_what_is_fed_computed_or_of_another_type_is_not_constant():
    body = (
        "c = Constant<value = int64[1] {1}>()  d = Constant<value = double[1] {1}>()  r = Relu(w)"
        "  o = other.Identity(w)  f = Identity(given)  y = Relu(x)"
    )
    inputs = "float[N,3,5,5] x, float[2] given"
    model = model_of(body, constants(w=[3, 4], given=[1, 2]), inputs, outputs="float[N,3,5,5] y")
    assert [constant(value_named(model, name)) for name in ("c", "d", "r", "o", "f", "given", "x", "y")] == [None] * 8
    assert constant(None) is None
    maker_of(model, "f").replace_input_with(0, None)
    assert constant(value_named(model, "f")) is None


@pytest.mark.parametrize(
    ("body", "reader"),
    [
        ("a = Relu(x)  y = Neg(a)", "Neg"),
        ("a = Relu(x)  y = Add(a, a)", None),
        ("a = Relu(x)  b = Abs(a)  c = Neg(a)  y = Add(b, c)", None),
        ("a = Relu(x)  y = Neg(x)", None),
    ],
)
def test_the_only_reader_is_one_node_reading_once(body, reader):
    model = model_of(body, "", outputs="float[N,3,5,5] y")
    found = only_reader(value_named(model, "a"))
    assert (found.op_type if found else None) == reader


def test_a_tensor_that_leaves_the_graph_has_another_reader():
    model = model_of("a = Relu(x)  y = Neg(a)", "", outputs="float[N,3,5,5] y, float[N,3,5,5] a")
    assert only_reader(value_named(model, "a")) is None


def test_an_operator_is_known_by_type_and_domain():
    relu, other = model_of("a = Relu(x)  y = other.Relu(a)", "", outputs="float[N,3,5,5] y").graph
    assert is_operator(relu, "Relu") is True
    assert [is_operator(relu, "Neg"), is_operator(other, "Relu"), is_operator(None, "Relu")] == [False] * 3


# -- changes


@pytest.mark.parametrize("names", ["a", "ab", "abb", "baba"])
def test_a_node_reads_exactly_the_given_inputs(names):
    model = model_of("a = Relu(x)  b = Neg(x)  y = Concat<axis=1>(a, b, x)", "", outputs="float[N,9,5,5] y")
    concat = maker_of(model, "y")
    set_inputs(concat, [value_named(model, name) for name in names])
    assert [value.name for value in concat.inputs] == list(names)


def test_a_new_node_has_one_output_of_its_own_name():
    model = model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y")
    node = new_node("Concat", "joined", [model.graph.inputs[0]], [ir.AttrInt64("axis", 1)])
    assert (node.op_type, node.name, [value.name for value in node.outputs]) == ("Concat", "joined", ["joined"])
    assert (node.attributes.get_int("axis"), list(node.inputs), node.graph) == (1, list(model.graph.inputs), None)


@pytest.mark.parametrize(("name", "unused"), [("x", "x_"), ("a", "a_"), ("w", "w__"), ("free", "free")])
def test_names_in_use_are_avoided(name, unused):
    model = model_of("a = Relu(x)  y = Neg(a)", constants(w=[1], w_=[2]), outputs="float[N,3,5,5] y")
    assert unused_name(model.graph, name) == unused


@pytest.mark.parametrize(("array", "shape"), [(np.float32([[1, 2]]), [1, 2]), (np.float32(3), []), (np.int8([4]), [1])])
def test_a_new_initializer_is_in_the_graph_with_name_type_and_shape(array, shape):
    model = model_of("y = Relu(x)", "", outputs="float[N,3,5,5] y")
    value = new_initializer(model.graph, "y", array)
    assert model.graph.initializers["y_"] is value
    assert (value.name, value.const_value.name, list(value.shape)) == ("y_", "y_", shape)
    assert value.dtype == value.const_value.dtype == ir.DataType.from_numpy(array.dtype)
    np.testing.assert_array_equal(value.const_value.numpy(), array)


def _replaced(kind: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Node:
    """A Relu, with type FLOAT and shape (N, 3), that took over the output z of a Neg with that type and shape."""
    model = model_of("a = Relu(x)  z = Neg(x)  q = Abs(z)  y = Neg(z)", "", "float[N,3] x", "float[N,3] y")
    relu, neg, *readers = model.graph
    relu.outputs[0].type, relu.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 3])
    neg.outputs[0].type, neg.outputs[0].shape = kind, shape
    take_over_output(relu, neg.outputs[0])
    assert list(model.graph) == [relu, *readers]
    assert [node.inputs[0] for node in readers] == [relu.outputs[0]] * 2
    assert {use.node for use in model.graph.inputs[0].uses()} == {relu}  # the dropped Neg reads nothing any more
    return relu


def test_an_output_takes_name_type_and_shape_of_the_one_that_it_replaces():
    (output,) = _replaced(ir.TensorType(ir.DataType.DOUBLE), ir.Shape([1, 3])).outputs
    assert (output.name, output.dtype, list(output.shape)) == ("z", ir.DataType.DOUBLE, [1, 3])


def test_type_and_shape_stay_where_the_replaced_output_has_none():
    (output,) = _replaced(None, None).outputs
    assert (output.name, output.dtype, output.shape) == ("z", ir.DataType.FLOAT, ir.Shape(["N", 3]))


def test_an_output_of_the_graph_is_taken_over():
    model = model_of("a = Relu(x)  y = Neg(a)", "", outputs="float[N,3,5,5] y")
    relu, neg = model.graph
    take_over_output(relu, neg.outputs[0])
    assert operators(model) == ["Relu"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert relu.outputs[0] is model.graph.outputs[0]


@pytest.mark.parametrize(("axes", "shape"), [(1, (2,)), (2, (2, 1)), (4, (2, 1, 1, 1))])
def test_numbers_are_spread_over_axes(axes, shape):
    found = spread(np.float64([3, 4]), axes)
    assert (found.shape, found.ravel().tolist()) == (shape, [3, 4])


def test_whole_numbers_are_read_from_constants_of_any_integer_type():
    stored = "int64[2,2] a = {1,2,3,4}, int32[1] b = {5}, int8 c = {-6}, float[1] d = {7}, int64[1] fed = {8}"
    body = "k = Constant<value = int64[2] {9, 10}>()  y = Relu(x)"
    model = model_of(body, stored, "float[N,3,5,5] x, int64[1] fed", "float[N,3,5,5] y")
    found = {name: integers(value_named(model, name)) for name in ("a", "b", "c", "d", "fed", "k", "x")}
    assert found == {"a": (1, 2, 3, 4), "b": (5,), "c": (-6,), "d": None, "fed": None, "k": (9, 10), "x": None}
    assert integers(None) is None


# -- axes and channels

MAKERS = """
c = Conv(x, w)  flat = Flatten(x)  relu = Relu(c)  max = MaxPool<kernel_shape=[1,1]>(relu)
average = AveragePool<kernel_shape=[1,1]>(max)  norm = BatchNormalization(average, b, b, b, b)  same = Identity(norm)
drop = Dropout(same)  joined = Concat<axis=1>(drop, drop)  product = Mul(b, drop)  sum = Add(drop, b)
small = Mul(b, b)  s = Sigmoid(x)  vague = Add(drop, s)  own = other.Relu(c)  own_conv = other.Conv(x, w)
k = Neg(w)  gemm = Gemm(x, w)  difference = Sub(drop, b)  quotient = Div(b, drop)  computed = Conv(x, k)  y = Relu(x)
"""


@pytest.fixture
def shapeless() -> ir.Model:
    """A graph that says the shapes of its inputs, x (N, 3, 5, 5) and v (M), and of initializers, and no others."""
    numbers = constants(w=np.ones((4, 3, 1, 1)), b=np.ones(4))
    return model_of(MAKERS, numbers, "float[N,3,5,5] x, float[M] v", "float[N,3,5,5] y")


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("x", 4),
        ("v", 1),
        ("b", 1),
        ("flat", 2),
        ("gemm", 2),
        *(
            (name, 4)
            for name in (
                "c",
                "relu",
                "max",
                "average",
                "norm",
                "same",
                "drop",
                "joined",
                "product",
                "sum",
                "difference",
            )
        ),
        ("quotient", 4),
        ("small", 1),
        *((name, None) for name in ("vague", "s", "own", "own_conv", "k")),
    ],
)
def test_axes_are_counted_without_shapes(shapeless, name, rank):
    assert rank_of(value_named(shapeless, name)) == rank


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("x", 3),
        *((name, 4) for name in ("c", "relu", "max", "average", "norm", "same", "drop")),
        *((name, None) for name in ("v", "b", "joined", "product", "s", "own", "own_conv", "computed", "flat")),
    ],
)
def test_channels_are_counted_without_shapes(shapeless, name, channels):
    assert channels_of(value_named(shapeless, name)) == channels


def test_of_nothing_nothing_is_known():
    assert rank_of(None) is None
    assert channels_of(None) is None


@pytest.mark.parametrize(("shape", "channels"), [(["N", 7], 7), (["N", 7, 5, 5], 7), (["N", "C", 5, 5], 4), ([7], 4)])
def test_a_shape_says_the_channels_if_it_holds_a_number(shapeless, shape, channels):
    value = value_named(shapeless, "relu")
    value.shape = ir.Shape(shape)
    assert channels_of(value) == channels
    assert rank_of(value) == len(shape)


# -- BatchNormalization

NORM = constants(g=[2, -4], b=[8, 16], m=[32, 64], v=[3, 15])


def _norm(call: str, inputs: str = "float[N,2,5,5] x", header: str = HEADER) -> ir.Node:
    return next(iter(model_of(call, NORM, inputs, "float[N,2,5,5] y", header).graph))


@pytest.mark.parametrize("attributes", ["", "<training_mode=0>"])
def test_a_norm_of_constants_is_affine(attributes):
    assert why_not_affine(_norm(f"y = BatchNormalization{attributes}(x, g, b, m, v)")) is None


@pytest.mark.parametrize("fed", [1, 2, 3, 4])
def test_a_norm_that_is_fed_a_number_is_not_affine(fed):
    names = ["x", "g", "b", "m", "v"]
    names[fed] = "fed"
    norm = _norm(f"y = BatchNormalization({', '.join(names)})", "float[N,2,5,5] x, float[2] fed")
    assert "not float32 constants" in why_not_affine(norm)


def test_a_norm_in_training_by_attribute_or_outputs_is_not_affine():
    norm = _norm("y = BatchNormalization<training_mode=1>(x, g, b, m, v)")
    assert "training" in why_not_affine(norm)
    old = '<ir_version: 4, opset_import: ["" : 9]>'
    norm = _norm("y, p, q, r, s = BatchNormalization(x, g, b, m, v)", header=old)
    assert "training" in why_not_affine(norm)
    norm.resize_outputs(2)
    assert "training" in why_not_affine(norm)


def test_a_norm_is_a_scale_and_a_shift():
    scale, shift = scale_and_shift(_norm("y = BatchNormalization<epsilon=1.0>(x, g, b, m, v)"))
    assert (scale.dtype, shift.dtype) == (np.float64, np.float64)
    assert (scale.tolist(), shift.tolist()) == ([1, -1], [8 - 32, 16 + 64])  # sqrt(3 + 1) = 2 and sqrt(15 + 1) = 4
    scale, _ = scale_and_shift(_norm("y = BatchNormalization(x, g, b, m, v)"))
    assert scale.tolist() == [2 / math.sqrt(3 + 1e-5), -4 / math.sqrt(15 + 1e-5)]


# -- Conv and pools

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


@pytest.mark.parametrize(
    ("call", "whole"),
    [
        ("AveragePool<kernel_shape=[2,2]>(x)", True),
        ("AveragePool<kernel_shape=[2,2], ceil_mode=0, pads=[0,0,0,0]>(x)", True),
        ("AveragePool<kernel_shape=[2,2], ceil_mode=1>(x)", False),
        ("AveragePool<kernel_shape=[2,2], pads=[0,1,0,1]>(x)", False),
        ('AveragePool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(x)', False),
        ("MaxPool<kernel_shape=[2,2]>(x)", False),
        ("other.AveragePool<kernel_shape=[2,2]>(x)", False),
    ],
)
def test_whether_a_pool_averages_whole_windows(call, whole):
    model = model_of(f"y = {call}", "", outputs="float[N,3,A,B] y")
    assert averages_whole_windows(maker_of(model, "y")) is whole


def test_no_node_averages_nothing():
    assert averages_whole_windows(None) is False


@pytest.mark.parametrize(
    ("arguments", "size", "bias"),
    [("x, w", 2, [0, 0, 0, 0]), ("x, w", 3, [0, 0, 0, 0]), ("x, w, b", 3, [1, 2, 3, 4])],
    ids=["none", "left empty", "given"],
)
def test_a_missing_bias_is_zero(arguments, size, bias):
    numbers = constants(w=np.arange(12).reshape(4, 3, 1, 1), b=[1, 2, 3, 4])
    _, conv = conv_of(f"y = Conv({arguments})", numbers)
    conv.resize_inputs(size)
    weight, found = weight_and_bias(conv)
    assert (weight.dtype, found.dtype) == (np.float64, np.float64)
    assert (weight.ravel().tolist(), found.tolist()) == (list(range(12)), bias)


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
    assert len(conv.inputs) == 3
    assert [value.name for value in conv.inputs[1:]] == ["c.weight", "c.shifted.bias"]
    shift = np.float32([1, 2, 3, 4]).reshape(4, 1, 1)
    np.testing.assert_allclose(outputs_of(model)[0], before + shift, rtol=1e-5, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("c = Conv(x, w) y = Relu(c)", "Conv"),
        ("c = Conv(x, w) d = Relu(c) y = Add(c, d)", "its Conv has other readers"),
        ("c = Conv(x, w) d = Neg(c) y = Relu(d)", "it follows Neg, not a Conv"),
        ("c = other.Conv(x, w) y = Relu(c)", "it follows Conv, not a Conv"),
        ("d = Relu(x) y = Conv(d, w)", "it follows an input, not a Conv"),
    ],
)
def test_the_conv_that_a_node_alone_reads(body, answer):
    model = model_of(body, PLAIN)
    found = conv_before(next(node for node in model.graph if node.op_type == "Relu"))
    assert (found if isinstance(found, str) else found.op_type) == answer


def test_a_node_without_an_input_follows_no_conv():
    model = model_of("c = Conv(x, w) y = Relu(c)", PLAIN)
    relu = maker_of(model, "y")
    relu.replace_input_with(0, None)
    assert isinstance(conv_before(relu), str)


def test_names_that_a_block_looks_up_in_a_set_are_those_that_it_would_find_in_the_graph():
    model = model_of("y = Relu(x)", weights(w=(1,)))
    graph = model.graph
    with names_known(graph):
        assert [unused_name(graph, name) for name in ("x", "y", "w", "z")] == ["x_", "y_", "w_", "z"]
        node = new_node("Neg", "made", [graph[0].outputs[0]])
        graph.append(node)
        assert unused_name(graph, "made") == "made_"
        names = [new_initializer(graph, name, np.float32(0)).name for name in ("w", "number", "number", "w_")]
        assert names == ["w_", "number", "number_", "w__"]
        graph.remove(node)
        assert unused_name(graph, "made") == "made", "what the graph no longer has is free again"
        other = model_of("made = Relu(x)", weights(w=(1,)), outputs="float[N,3,5,5] made").graph
        assert (unused_name(other, "z"), unused_name(other, "made")) == ("z", "made_")
    assert unused_name(graph, "y") == "y_"


def test_the_name_of_an_initializer_that_was_removed_is_free_again():
    graph = model_of("y = Relu(x)", weights(w=(1,))).graph
    with names_known(graph):
        remove_initializer(graph, "w")
        assert "w" not in graph.initializers
        assert new_initializer(graph, "w", np.float32(0)).name == "w"
        other = model_of("y = Relu(x)", weights(w=(1,))).graph
        remove_initializer(other, "w")
        assert unused_name(graph, "w") == "w_", "the other graph's is another"
    remove_initializer(graph, "w")
    assert unused_name(graph, "w") == "w"

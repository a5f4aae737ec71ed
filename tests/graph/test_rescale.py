"""Channels are scaled and shifted where they are made, and that is undone where they are read, number by number."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.rescale import (
    Source,
    columns_of,
    divide,
    floored,
    shift,
    source_of,
    unscale,
    unshift,
    why_no_range,
    why_not_shifted,
    why_not_unscaled,
    why_not_unshifted,
)
from densenet_deploy.graph.tensor_changes import TensorChanges, read_tensor_changes
from tests.graph.onnx_text import constants, maker_of, model_of, numbers_of, value_named

# Powers of two, so that every product and quotient is exact.
W = np.float32([[1, 2, 4], [-8, 16, 32]]).reshape(2, 3, 1, 1)
PAIR = {"g": [2, -4], "b": [8, 16], "m": [32, 64], "v": [1, 2]}
NUMBERS = {"w": W, "bias": [64, -128], **PAIR, "s": [[[2]], [[4]]], "t": [[[8]], [[16]]], "one": [2], "row": [[1]] * 5}
NORM = "BatchNormalization(k, g, b, m, v)"
D = np.float32([2, 4])


def _model(
    body: str, output: str = "float[N,2,5,5] y", inputs: str = "float[N,3,5,5] x", **numbers: object
) -> ir.Model:
    """A graph in which every value of a node has two channels and 5x5 pixels, unless it says otherwise."""
    model = model_of(body, constants(**{**NUMBERS, **numbers}), inputs, output)
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        value.shape = ir.Shape(["N", 2, 5, 5])
    return model


def _source(model: ir.Model, name: str = "y") -> Source:
    source = source_of(value_named(model, name))
    assert not isinstance(source, str)
    return source


def _names(source: Source) -> list[str | None]:
    return [value.name for value in source.values]


def _read(node: ir.Node) -> dict[str, list[float]]:
    """The constants that a node reads, by name, in a row."""
    values = [value for value in node.inputs if value is not None and value.const_value is not None]
    return {str(value.name): numbers_of(value).ravel().tolist() for value in values}


def _divided(model: ir.Model, d: np.ndarray = D, name: str = "y") -> ir.Node:
    source, changes = _source(model, name), TensorChanges.of(model)
    divide(model.graph, source, d, changes)
    changes.write_to(model)
    return source.node


# -- sources


def test_the_source_of_a_tensor_is_found_through_what_passes_a_division_on():
    body = "c = Conv(x, w)  r = Relu(c)  q = MaxPool<kernel_shape=[1,1]>(r)  y = AveragePool<kernel_shape=[1,1]>(q)"
    source = _source(_model(body))
    assert source.node.op_type == "Conv"
    assert _names(source) == ["y", "q", "r", "c"]


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        ("y = Conv(x, w)", "Conv"),
        ("y = Conv(x, w, bias)", "Conv"),
        ("k = Conv(x, w)  y = " + NORM, "BatchNormalization"),
    ],
)
def test_a_tensor_with_constants_before_it_is_its_own_source(maker, kind):
    source = _source(_model(maker))
    assert (source.node.op_type, _names(source)) == (kind, ["y"])


def test_a_conv_whose_optional_bias_is_left_empty_is_a_source():
    model = _model("y = Conv(x, w)")
    maker_of(model, "y").resize_inputs(3)
    assert _names(_source(model)) == ["y"]


@pytest.mark.parametrize(
    "maker",
    [
        "p = Mul(k, s)  y = Add(p, t)",
        "p = Mul(s, k)  y = Add(t, p)",
        "p = Mul(k, one)  y = Add(p, t)",
    ],
)
def test_a_scale_and_a_shift_are_one_source(maker):
    source = _source(_model("k = Conv(x, w)  " + maker))
    assert (source.node.op_type, _names(source)) == ("Add", ["y", "p"])


def test_the_tensor_itself_may_have_many_readers():
    model = _model("y = Conv(x, w)  z = Neg(y)  q = Abs(y)", "float[N,2,5,5] y, float[N,2,5,5] z, float[N,2,5,5] q")
    assert _names(_source(model)) == ["y"]


@pytest.mark.parametrize(
    ("body", "more", "why"),
    [
        ("k = Conv(x, w)  y = Relu(k)  z = Neg(k)", "float[N,2,5,5] z", "k has other readers"),
        ("k = Conv(x, w)  y = Relu(k)", "float[N,2,5,5] k", "k has other readers"),
        ("k = Conv(x, w)  q = Relu(k)  y = Relu(q)  z = Neg(k)", "float[N,2,5,5] z", "k has other readers"),
        ("k = Conv(x, w)  q = Mul(k, s)  y = Add(q, t)  z = Neg(q)", "float[N,2,5,5] z", "made by Add"),
        ("k = Conv(x, w)  q = Mul(k, s)  y = Add(q, t)", "float[N,2,5,5] q", "made by Add"),
        ("k = Conv(x, w)  y = Add(k, t)", "", "made by Add"),
        ("y = Add(e, t)", "", "made by Add"),
        ("k = Conv(x, w)  q = Sub(k, s)  y = Add(q, t)", "", "made by Add"),
        ("k = Conv(x, w)  q = Mul(k, row)  y = Add(q, t)", "", "made by Add"),
        ("k = Conv(x, w)  q = Mul(k, s)  y = Add(q, row)", "", "made by Add"),
        ("k = Conv(x, w)  q = Mul(k, s)  y = Mul(q, t)", "", "made by Mul"),
        ("k = Conv(x, w)  q = Mul(k, s)  y = Sub(q, t)", "", "made by Sub"),
        ("k = Conv(x, w)  y = Sigmoid(k)", "", "made by Sigmoid"),
        ("k = Conv(x, w)  y = other.Relu(k)", "", "made by Relu"),
        ("y = Conv(x, fed)", "", "float32 constants"),
        ("y = Conv(x, fed, bias)", "", "float32 constants"),
        ("y = Conv(x, w, two)", "", "float32 constants"),
        ("k = Conv(x, w)  y = BatchNormalization(k, two, b, m, v)", "", "float32 constants"),
        ("y = Relu(e)", "", "e is an input of the graph"),
    ],
)
def test_a_tensor_that_cannot_be_divided_has_no_source(body, more, why):
    inputs = "float[N,3,5,5] x, float[N,2,5,5] e, float[2,3,1,1] fed, float[2] two"
    model = _model(body, ", ".join(filter(None, ["float[N,2,5,5] y", more])), inputs)
    assert why in source_of(value_named(model, "y"))


def test_an_input_of_the_graph_and_a_missing_one_have_no_source():
    model = _model("y = Relu(x)", "float[N,3,5,5] y")
    assert "x is an input" in source_of(model.graph.inputs[0])
    maker_of(model, "y").replace_input_with(0, None)
    assert isinstance(source_of(value_named(model, "y")), str)
    assert isinstance(source_of(None), str)


@pytest.mark.parametrize(("label", "name"), [("[first] ", "first"), ("", "Conv")])
def test_a_refused_maker_is_called_by_its_name_or_its_operator(label, name):
    model = _model(f"{label}y = Conv(x, fed)", inputs="float[N,3,5,5] x, float[2,3,1,1] fed")
    assert str(source_of(value_named(model, "y"))).startswith(f"{name} ")


# -- division where a tensor is made


def test_the_rows_of_a_conv_and_its_bias_are_divided():
    conv = _divided(_model("y = Conv(x, w, bias)"))
    assert _read(conv) == {"w:scaled": [0.5, 1, 2, -2, 4, 8], "bias:scaled": [32, -32]}
    assert numbers_of(conv.inputs[1]).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("size", [2, 3])
def test_a_conv_without_a_bias_stays_without(size):
    model = _model("y = Conv(x, w)")
    maker_of(model, "y").resize_inputs(size)
    conv = _divided(model)
    assert _read(conv) == {"w:scaled": [0.5, 1, 2, -2, 4, 8]}
    assert len(conv.inputs) == size


def test_a_conv_over_signals_is_divided():
    model = _model("y = Conv(x, w)", "float[N,2,4] y", "float[N,1,5] x", w=np.float32([[[2, 4]], [[8, 16]]]))
    assert _read(_divided(model)) == {"w:scaled": [1, 2, 2, 4]}


def test_scale_and_shift_of_a_norm_are_divided_and_its_statistics_stay():
    norm = _divided(_model("k = Conv(x, w)  y = " + NORM))
    assert _read(norm) == {"g:scaled": [1, -1], "b:scaled": [4, 4], "m": [32, 64], "v": [1, 2]}


@pytest.mark.parametrize("maker", ["p = Mul(k, s)  y = Add(p, t)", "p = Mul(s, k)  y = Add(t, p)"])
def test_factor_and_summand_are_divided(maker):
    model = _model("k = Conv(x, w)  " + maker)
    add = _divided(model)
    assert _read(add) == {"t:scaled": [4, 4]}
    mul = maker_of(model, "p:scaled")
    assert _read(mul) == {"s:scaled": [1, 1]}
    assert numbers_of(value_named(model, "s:scaled")).shape == (2, 1, 1)


def test_one_number_for_all_channels_becomes_one_for_each():
    model = _model("k = Conv(x, w)  p = Mul(k, one)  y = Add(p, t)")
    _divided(model)
    assert _read(maker_of(model, "p:scaled")) == {"one:scaled": [1, 0.5]}


def test_every_tensor_from_the_source_on_is_renamed_and_says_its_factor():
    model = _model("c = Conv(x, w)  r = Relu(c)  y = Abs(r)")
    _divided(model, name="r")
    assert [value.name for node in model.graph for value in node.outputs] == ["c:scaled", "r:scaled", "y"]
    changes = read_tensor_changes(model.metadata_props)
    assert {name: (change.of, change.factor) for name, change in changes.items()} == {
        "c:scaled": ("c", (2, 4)),
        "r:scaled": ("r", (2, 4)),
    }


def test_dividing_twice_keeps_one_initializer_with_one_ending():
    model = _model("y = Conv(x, w, bias)")
    for _ in range(2):
        source = next(iter(model.graph))
        divide(model.graph, _source(model, str(source.outputs[0].name)), D, TensorChanges({}))
    assert _read(next(iter(model.graph))) == {"w:scaled": [0.25, 0.5, 1, -0.5, 1, 2], "bias:scaled": [16, -8]}
    assert {"w", "bias", "w:scaled_"}.isdisjoint(model.graph.initializers)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = Conv(x, w)  z = Conv(x, w)", "float[N,2,5,5] y, float[N,2,5,5] z"),
        ("y = Conv(x, w)", "float[N,2,5,5] y, float[2,3,1,1] w"),
    ],
    ids=["read by another node", "an output of the graph"],
)
def test_numbers_that_others_need_stay_for_them(body, outputs):
    model = _model(body, outputs)
    assert _read(_divided(model)) == {"w:scaled": [0.5, 1, 2, -2, 4, 8]}
    np.testing.assert_array_equal(numbers_of(model.graph.initializers["w"]), W)


def test_weights_of_a_constant_node_are_divided():
    model = _model("c = Constant<value = float[2,3,1,1] {2, 2, 2, 4, 4, 4}>()  y = Conv(x, c)")
    conv = maker_of(model, "y")
    divide(model.graph, _source(model), D, TensorChanges({}))
    assert numbers_of(conv.inputs[1]).ravel().tolist() == [1, 1, 1, 1, 1, 1]


# -- division undone where it is read

READ = "k = Conv(x, w)  "


@pytest.mark.parametrize(
    ("reader", "index", "can"),
    [
        ("y = Conv(k, u)", 0, True),
        ("y = Conv(k, fed)", 0, False),
        ("y = Conv(k, u)", 1, False),
        ("y = Conv(k, u, bias)", 2, False),
        ("y = " + NORM, 0, True),
        ("y = " + NORM, 1, False),
        ("y = BatchNormalization(k, two, b, m, v)", 0, False),
        ("y = Mul(k, s)", 0, True),
        ("y = Mul(s, k)", 1, True),
        ("y = Mul(k, one)", 0, True),
        ("y = Mul(k, scalar)", 0, True),
        ("y = Mul(k, fours)", 0, True),
        ("y = Mul(k, row)", 0, False),
        ("y = Mul(k, columns)", 0, False),
        ("y = Mul(k, images)", 0, False),
        ("y = Mul(k, k)", 0, False),
        ("y = Mul(k, two)", 0, False),
        ("y = Add(k, s)", 0, False),
        ("y = Relu(k)", 0, False),
        ("y = other.Mul(k, s)", 0, False),
        ("y = other.Conv(k, u)", 0, False),
    ],
)
def test_who_can_undo_a_division(reader, index, can):
    more = {
        "u": np.ones((2, 2, 1, 1)),
        "scalar": 4,
        "fours": np.ones((1, 2, 1, 1)),
        "columns": np.ones(5),
        "images": np.ones((2, 1, 1, 1)),
    }
    model = _model(READ + reader, inputs="float[N,3,5,5] x, float[2,2,1,1] fed, float[2] two", **more)
    assert (why_not_unscaled(maker_of(model, "y"), index) is None) is can


def test_a_factor_is_per_channel_by_the_number_of_axes():
    model = _model("k = Relu(x)  y = Mul(k, two)", "float[N,2] y", "float[N,2] x", two=[1, 2])
    value_named(model, "k").shape = ir.Shape(["N", 2])
    assert why_not_unscaled(maker_of(model, "y"), 0) is None


def test_a_product_of_constants_or_of_unknown_axes_cannot_undo_it():
    model = _model("k = Conv(x, w)  q = Mul(s, t)  e = Mul(k, s)  y = Add(e, q)")
    assert why_not_unscaled(maker_of(model, "q"), 0) is not None
    assert why_not_unscaled(maker_of(model, "e"), 0) is None
    unknown = model_of("k = Sigmoid(x)  y = Mul(k, s)", constants(s=[1]))
    assert why_not_unscaled(maker_of(unknown, "y"), 0) is not None


def test_the_columns_of_a_conv_are_multiplied():
    model = _model("k = Conv(x, w)  y = Conv(k, u, bias)", u=np.float32([[1, 2], [4, 8]]).reshape(2, 2, 1, 1))
    conv = maker_of(model, "y")
    unscale(model.graph, conv, D)
    assert _read(conv) == {"u:scaled": [2, 8, 8, 32], "bias": [64, -128]}


def test_the_columns_of_each_group_are_multiplied_by_their_own_channels():
    weight = np.arange(32, dtype=np.float32).reshape(4, 2, 2, 2)
    model = _model("y = Conv<group=2>(x, u)", "float[N,4,4,4] y", "float[N,4,5,5] x", u=weight)
    conv = maker_of(model, "y")
    columns = columns_of(conv)
    assert columns.dtype == np.float64
    np.testing.assert_array_equal(columns, weight.reshape(2, 2, 2, 2, 2))
    unscale(model.graph, conv, np.float32([1, 2, 4, 8]))
    factors = np.float32(
        [[1, 2], [1, 2], [4, 8], [4, 8]]
    )  # rows 0 and 1 read channels 0 and 1, rows 2 and 3 the others
    np.testing.assert_array_equal(numbers_of(conv.inputs[1]), weight * factors[:, :, None, None])


def test_a_norm_multiplies_its_scale_and_divides_its_mean():
    model = _model("k = Conv(x, w)  y = " + NORM)
    norm = maker_of(model, "y")
    unscale(model.graph, norm, D)
    assert _read(norm) == {"g:scaled": [4, -16], "b": [8, 16], "m:scaled": [16, 16], "v": [1, 2]}


@pytest.mark.parametrize("reader", ["y = Mul(k, s)", "y = Mul(s, k)"])
def test_a_factor_is_multiplied(reader):
    model = _model("k = Conv(x, w)  " + reader)
    mul = maker_of(model, "y")
    unscale(model.graph, mul, D)
    assert _read(mul) == {"s:scaled": [4, 16]}


# -- shifts


@pytest.mark.parametrize(
    ("maker", "can"),
    [
        ("y = Conv(x, w)", True),
        ("k = Conv(x, w)  y = " + NORM, True),
        ("k = Conv(x, w)  y = MaxPool<kernel_shape=[1,1]>(k)", True),
        ("k = Conv(x, w)  y = AveragePool<kernel_shape=[1,1]>(k)", True),
        ("k = Conv(x, w)  y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(k)", False),
        ("k = Conv(x, w)  y = Relu(k)", False),
        ("k = Conv(x, w)  q = Relu(k)  y = MaxPool<kernel_shape=[1,1]>(q)", False),
        ("k = Conv(x, w)  p = Mul(k, s)  y = Add(p, t)", False),
    ],
)
def test_which_makers_can_shift(maker, can):
    assert (why_not_shifted(_source(_model(maker))) is None) is can


@pytest.mark.parametrize(("arguments", "bias"), [("w, bias", [67, -123]), ("w", [3, 5])])
def test_a_conv_shifts_by_its_bias(arguments, bias):
    model = _model(f"k = Conv(x, {arguments})  y = MaxPool<kernel_shape=[1,1]>(k)  z = Neg(y)", "float[N,2,5,5] z")
    source, changes = _source(model), TensorChanges.of(model)
    shift(model.graph, source, np.float32([3, 5]), changes)
    changes.write_to(model)
    assert _read(source.node) == {"w": W.ravel().tolist(), "w.shifted.bias": bias}
    assert [value.name for node in model.graph for value in node.outputs] == ["k:shifted", "y:shifted", "z"]
    offsets = {name: change.offset for name, change in read_tensor_changes(model.metadata_props).items()}
    assert offsets == {"k:shifted": (-3, -5), "y:shifted": (-3, -5)}


def test_a_norm_shifts_by_its_last_summand():
    model = _model("k = Conv(x, w)  y = " + NORM)
    source = _source(model)
    shift(model.graph, source, np.float32([3, 5]), TensorChanges({}))
    assert _read(source.node) == {"g": [2, -4], "b:shifted": [11, 21], "m": [32, 64], "v": [1, 2]}


@pytest.mark.parametrize(
    ("reader", "index", "can"),
    [
        ("y = Conv(k, u)", 0, True),
        ("y = Conv(k, u, bias)", 0, True),
        ("y = Conv(k, u)", 1, False),
        ("y = Conv(k, fed)", 0, False),
        ("y = Conv(k, u, two)", 0, False),
        ("y = Conv<pads=[1,1,1,1]>(k, v3)", 0, False),
        ("y = " + NORM, 0, True),
        ("y = " + NORM, 1, False),
        ("y = BatchNormalization(k, two, b, m, v)", 0, False),
        ("y = Mul(k, s)", 0, False),
        ("y = Relu(k)", 0, False),
    ],
)
def test_who_can_undo_a_shift(reader, index, can):
    more = {"u": np.ones((2, 2, 1, 1)), "v3": np.ones((2, 2, 3, 3))}
    model = _model(READ + reader, inputs="float[N,3,5,5] x, float[2,2,1,1] fed, float[2] two", **more)
    assert (why_not_unshifted(maker_of(model, "y"), index) is None) is can


def test_a_norm_takes_a_shift_into_its_mean():
    model = _model("k = Conv(x, w)  y = " + NORM)
    norm = maker_of(model, "y")
    unshift(model.graph, norm, np.float32([3, 5]))
    assert _read(norm) == {"g": [2, -4], "b": [8, 16], "m:shifted": [35, 69], "v": [1, 2]}


def test_a_conv_takes_a_shift_from_its_bias_group_by_group():
    weight = np.arange(32, dtype=np.float32).reshape(4, 2, 2, 2)
    numbers = {"u": weight, "bias": [1000, 2000, 3000, 4000]}
    model = _model("y = Conv<group=2>(x, u, bias)", "float[N,4,4,4] y", "float[N,4,5,5] x", **numbers)
    conv = maker_of(model, "y")
    unshift(model.graph, conv, np.float32([1, 10, 100, 1000]))
    # sums over the kernel: [[6, 22], [38, 54], [70, 86], [102, 118]]; the first two rows read the first two channels
    expected = [1000 - 6 - 220, 2000 - 38 - 540, 3000 - 7000 - 86000, 4000 - 10200 - 118000]
    assert numbers_of(conv.inputs[2]).tolist() == expected
    np.testing.assert_array_equal(numbers_of(conv.inputs[1]), weight)


# -- ranges


@pytest.mark.parametrize("given", [[0.5, 2], [0, 1], [0, 0]])
def test_a_range_of_numbers_from_zero_on_is_one(given):
    assert why_no_range({"a": np.float32(given)}, "a", 2) is None


@pytest.mark.parametrize("given", [[1], [1, 1, 1], [[1, 1]], [1, -0.5], [1, np.inf], [1, np.nan], [-1, -1]])
def test_a_range_of_another_length_or_of_other_numbers_is_none(given):
    assert isinstance(why_no_range({"a": np.float32(given)}, "a", 2), str)


def test_a_range_that_is_not_given_is_none():
    assert isinstance(why_no_range({"b": np.ones(2)}, "a", 2), str)


def test_small_sizes_are_raised_to_a_thousandth_of_the_largest():
    sizes = floored(np.float32([2, 0, 0.0005, 0.25]))
    assert sizes.dtype == np.float64
    assert sizes.tolist() == [2, 0.002, 0.002, 0.25]
    assert floored(np.float64([3])).tolist() == [3]

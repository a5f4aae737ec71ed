"""What a graph shows: sizes, the normalization inside it, and what its outputs mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from densenet_deploy.facts import ModelFacts
from densenet_deploy.graph.foreign import adopt
from densenet_deploy.graph.shown_facts import ShownOutput, facts_of_graph, scores_per_image
from tests.foreign_networks import Encoding, written

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIXELS, UNIT, UNKNOWN = ((0.0,), (1 / 255,)), ((0.0,), (1.0,)), (None, None)


def _normalization(*leading, **more):
    """The mean and std that a network with these leading steps shows."""
    facts = facts_of_graph(written(Encoding(leading=leading, **more))).facts
    return facts.mean, facts.std


@pytest.mark.parametrize(
    ("leading", "shown"),
    [
        ((), UNKNOWN),
        ((("Div", 255.0, False), ("Sub", MEAN, False), ("Div", STD, False)), PIXELS),
        ((("Mul", 1 / 255, False), ("Sub", MEAN, False), ("Div", STD, False)), PIXELS),
        ((("Mul", 1 / 255, True), ("Add", -MEAN, True), ("Mul", 1 / STD, True)), PIXELS),
        ((("Sub", 255 * MEAN, False), ("Div", 255 * STD, False)), PIXELS),
        ((("Sub", 255 * MEAN, False), ("Mul", 1 / (255 * STD), False)), PIXELS),
        ((("Mul", 1 / (255 * STD), False), ("Add", -MEAN / STD, False)), PIXELS),
        ((("Sub", 255 * MEAN, False),), PIXELS),
        ((("Sub", 127.5, False), ("Div", 127.5, False)), PIXELS),
        ((("Div", 127.5, False), ("Sub", 1.0, False)), PIXELS),
        ((("Sub", [103.94, 116.78, 123.68], False), ("Mul", 0.017, False)), PIXELS),
        ((("Sub", 255 * MEAN, True),), PIXELS),  # inverted
        ((("Div", 255.0, False),), PIXELS),
        ((("Div", 256.0, False),), ((0.0,), (1 / 256,))),
        ((("Div", 255.2, False),), PIXELS),
        ((("Mul", 1.0, False),), UNIT),
        ((("Mul", 10.0, False),), UNKNOWN),
        ((("Div", 65535.0, False),), ((0.0,), (1 / 65535,))),
        ((("Sub", MEAN, False), ("Div", STD, False)), UNIT),
        ((("Sub", 0.5, False), ("Div", 0.5, False)), UNIT),
        ((("Mul", 2.0, False), ("Sub", 1.0, False)), UNIT),
        ((("Sub", 0.5, False),), UNIT),
        ((("Mul", STD / 0.5, False), ("Add", (MEAN - 0.5) / 0.5, False)), UNKNOWN),  # of normalized values, again
        ((("Mul", 3.0, False),), UNKNOWN),
        ((("Div", 254.0, False),), UNKNOWN),
        ((("Add", 0.5, False),), UNKNOWN),
        ((("Sub", [0.5, 0.5, 120.0], False),), UNKNOWN),
        ((("Sub", [5.0, 5.0, 5.0], False),), UNKNOWN),
        ((("Sub", [300.0, 120.0, 120.0], False),), UNKNOWN),
        ((("Mul", [0.0, 1.0, 1.0], False), ("Sub", 0.5, False)), UNKNOWN),
        ((("Sub", [0.0, 0.5, 0.5], False),), UNKNOWN),
        ((("Mul", -1 / 255, False),), PIXELS),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_normalization_inside_says_which_values_the_graph_takes(leading, shown, layout):
    assert _normalization(*leading, layout=layout) == shown


@pytest.mark.parametrize(("largest", "shown"), [(0.89, UNKNOWN), (0.91, UNIT)])
def test_a_normalization_spreads_its_range_over_about_one_at_least(largest, shown):
    assert _normalization(("Mul", largest, False), ("Sub", 0.5 * largest, False)) == shown


@pytest.mark.parametrize(
    ("zero", "shown"),
    [(1.0, UNIT), (1.01, UNKNOWN), (10.0, UNKNOWN), (10.1, PIXELS), (255.0, PIXELS), (255.1, UNKNOWN)],
)
def test_what_becomes_zero_lies_in_the_range(zero, shown):
    assert _normalization(("Sub", zero, False)) == shown


def test_an_adopted_graph_shows_the_same_as_its_file():
    encoding = Encoding(layout="NHWC", opset=9, leading=(("Sub", 255 * MEAN, False), ("Div", 255 * STD, False)))
    before, after = facts_of_graph(written(encoding)), facts_of_graph(adopt(written(encoding), "file.onnx").model)
    assert (before.layout, after.layout) == ("NHWC", "NCHW")
    assert dataclasses.replace(before, layout=None) == dataclasses.replace(after, layout=None)


def test_a_norm_at_the_input_is_a_conclusion_and_constants_are_certain():
    nodes = "n = BatchNormalization(x, s, b, m, v)  y = Conv(n, w)"
    stored = "float[1] s = {1}, float[1] b = {0}, float[1] m = {120}, float[1] v = {3000}, float[2,1,1,1] w = {1, 2}"
    shown = facts_of_graph(_graph(nodes, stored))
    assert (shown.facts.mean, shown.facts.std) == PIXELS
    assert shown.certain == {"channels", "image_size"}
    stated = facts_of_graph(written(Encoding(leading=(("Div", 255.0, False),))))
    assert stated.certain == {"channels", "image_size", "mean", "std"}


@pytest.mark.parametrize(
    ("leading", "parts"),
    [
        ((), ()),
        ((("Div", 255.0, False),), ()),
        ((("Mul", 3.0, False),), ("does not show the range",)),
        ((("Sub", [103.94, 116.78, 123.68], False),), ("BGR",)),
        ((("Sub", [123.68, 116.78, 103.94], False),), ()),
        ((("Sub", [104.8, 117.7, 124.6], False),), ("BGR",)),
        ((("Sub", [106.0, 119.0, 126.0], False),), ()),
        ((("Pow", 2.0, False),), ("begins with Pow",)),
        ((("Div", 255.0, False), ("Pow", 2.0, False)), ("begins with Pow",)),
    ],
    ids=str,
)
def test_what_cannot_be_stated_as_a_fact_is_said(leading, parts):
    notes = facts_of_graph(written(Encoding(leading=leading))).notes
    assert len(notes) == len(parts)
    assert all(part in note for part, note in zip(parts, notes, strict=True))


BGR = [0.406 * 255, 0.456 * 255, 0.485 * 255]
RGB = BGR[::-1]
GATHER = "f = Gather<axis=1>(x, order)"
FLIP = "f = Slice(x, start, end, axis, step)"
TAKES_BGR = "the graph subtracts the means of blue, green and red in that order: it takes the channels as BGR"
REVERSED = "the graph reverses the order of the channels first; images enter as RGB"


@pytest.mark.parametrize(
    ("nodes", "means", "order", "notes"),
    [
        (f"{GATHER} s = Sub(f, m) y = Conv(s, w)", RGB, [2, 1, 0], (TAKES_BGR,)),
        (f"{GATHER} s = Sub(f, m) y = Conv(s, w)", BGR, [-1, -2, -3], (REVERSED,)),
        (f"{FLIP} s = Sub(f, m) y = Conv(s, w)", RGB, [2, 1, 0], (TAKES_BGR,)),
        ("s = Sub(x, m) f = Gather<axis=-3>(s, order) y = Conv(f, w)", BGR, [2, 1, 0], (TAKES_BGR,)),
        (f"{GATHER} g = Gather<axis=1>(f, order) s = Sub(g, m) y = Conv(s, w)", RGB, [2, 1, 0], ()),
    ],
)
def test_channels_in_reverse_order_do_not_hide_the_normalization(nodes, means, order, notes):
    shown = facts_of_graph(_reordering(nodes, means, order))
    assert ((shown.facts.mean, shown.facts.std), shown.notes) == (PIXELS, notes)


@pytest.mark.parametrize(
    ("nodes", "order"), [(GATHER, [1, 2, 0]), (GATHER, [0, 1, 2]), ("f = Gather<axis=2>(x, order)", [2, 1, 0])]
)
def test_other_choices_of_channels_are_not_followed(nodes, order):
    shown = facts_of_graph(_reordering(f"{nodes} s = Sub(f, m) y = Conv(s, w)", RGB, order))
    assert shown.facts.mean is None
    assert shown.notes == (
        "the graph begins with Gather, which says nothing about the range of the values that it takes",
    )


def _reordering(nodes: str, means: list[float], order: list[int]) -> onnx.ModelProto:
    stored = f"float[3,1,1] m = {{{', '.join(map(str, means))}}}, int64[3] order = {{{', '.join(map(str, order))}}}"
    stored += ", int64[1] start = {-1}, int64[1] end = {-9000}, int64[1] axis = {1}, int64[1] step = {-1}"
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    body = f"<{stored}, float[1,3,1,1] w = {{1, 2, 3}}> {{ {nodes} }}"
    return onnx.parser.parse_model(f"{header} g (float[N,3,3,3] x) => (float[a,b,c,d] y) {body}")


# -- pixels


def _pixels(nodes: str, shape: str = "N,8,4,3") -> onnx.ModelProto:
    stored = "float m = {51}, float s = {255}, float[3] bgr = {103.939, 116.779, 123.68}, float[1,3,1,1] w = {1, 2, 3}"
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    return onnx.parser.parse_model(f"{header} g (uint8[{shape}] x) => (float[a,b,c,d] y) <{stored}> {{ {nodes} }}")


FRONT = "c = Cast<to=1>(x)  t = Transpose<perm=[0,3,1,2]>(c)  d = Sub(t, m)  n = Div(d, s)  y = Conv(n, w)"


@pytest.mark.parametrize(
    ("shape", "size", "height", "width"),
    [
        ("N,8,4,3", (8, 4), 8, 4),
        ("1,8,8,3", 8, 8, 8),
        ("N,8,w,3", None, 8, None),
        ("N,h,4,3", None, None, 4),
    ],
)
def test_a_graph_of_pixels_shows_its_normalization_for_certain(shape, size, height, width):
    shown = facts_of_graph(_pixels(FRONT, shape))
    assert shown.facts == ModelFacts(image_size=size, channels=3, mean=(0.2,), std=(1.0,))
    assert shown.certain == {"channels", "mean", "std"} | ({"image_size"} if size is not None else set())
    assert (shown.layout, shown.height, shown.width, shown.notes) == ("NHWC", height, width, ())
    assert list(shown.outputs) == ["y"]


def test_a_graph_of_pixels_shows_its_task_as_any_other():
    shown = facts_of_graph(_pixels(FRONT.replace("y = Conv", "k = Conv") + "  y = Sigmoid(k)"))
    assert (shown.facts.task, "task" in shown.certain) == ("multilabel", True)


def test_pixels_without_a_normalization_show_no_numbers():
    shown = facts_of_graph(_pixels("c = Cast<to=1>(x)  p = Max(c, m)  y = Transpose<perm=[0,3,1,2]>(p)"))
    assert shown.facts == ModelFacts(image_size=(8, 4), channels=3)
    assert (shown.certain, shown.layout, shown.notes) == ({"channels", "image_size"}, "NHWC", ())


def test_pixels_in_the_order_of_caffe_are_said():
    (note,) = facts_of_graph(
        _pixels("c = Cast<to=1>(x)  d = Sub(c, bgr)  t = Transpose<perm=[0,3,1,2]>(d)  y = Conv(t, w)")
    ).notes
    assert "BGR" in note


def test_pixels_whose_channels_are_reversed_are_said_and_zero_has_no_sign():
    nodes = (
        "c = Cast<to=1>(x)  t = Transpose<perm=[0,3,1,2]>(c)  n = Div(t, s)  r = Gather<axis=1>(n, o)  y = Conv(r, w)"
    )
    model = _pixels(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "o"))
    shown = facts_of_graph(model)
    assert shown.notes == (REVERSED,)
    assert str(shown.facts.mean) == "(0.0,)"


# -- sizes


def _graph(nodes: str, stored: str = "float[2,1,1,1] w = {1, 2}", shape: str = "N,1,8,8") -> onnx.ModelProto:
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    return onnx.parser.parse_model(f"{header} g (float[{shape}] x) => (float[a,b,c,d] y) <{stored}> {{ {nodes} }}")


@pytest.mark.parametrize(
    ("shape", "size", "height", "width", "certain"),
    [
        ("N,1,8,8", 8, 8, 8, {"channels", "image_size"}),
        ("1,1,8,4", (8, 4), 8, 4, {"channels", "image_size"}),
        ("N,1,8,w", None, 8, None, {"channels"}),
        ("N,1,h,4", None, None, 4, {"channels"}),
        ("N,1,h,w", None, None, None, {"channels"}),
        ("N,1,0,8", None, None, 8, {"channels"}),
    ],
)
def test_sizes_are_those_of_the_input(shape, size, height, width, certain):
    shown = facts_of_graph(_graph("y = Conv(x, w)", shape=shape))
    assert shown.facts == ModelFacts(image_size=size, channels=1)
    assert (shown.layout, shown.height, shown.width, shown.certain) == ("NCHW", height, width, certain)


@pytest.mark.parametrize("shape", ["8,8", "N,1,8,8,8"])
def test_an_input_of_other_axes_shows_only_the_outputs(shape):
    shown = facts_of_graph(_graph("y = Sigmoid(x)", shape=shape))
    assert (shown.facts, shown.layout) == (ModelFacts(task="multilabel"), None)
    assert shown.certain == {"task"}
    assert list(shown.outputs) == ["y"]


def test_two_inputs_or_one_of_unknown_axes_show_no_image():
    model = _graph("y = Conv(x, w)", shape="N,1,8,8")
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert facts_of_graph(model).facts == ModelFacts()
    model = _graph("y = Conv(x, w)", shape="N,1,8,8")
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 1, 8, 8]))
    assert facts_of_graph(model).facts == ModelFacts()


def test_a_weight_that_is_listed_as_an_input_is_not_an_image():
    model = _graph("y = Conv(x, w)", shape="N,1,8,8")
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 1, 1, 1]))
    assert facts_of_graph(model).facts.channels == 1


def test_an_image_of_one_channel_may_be_reshaped_instead_of_transposed():
    nodes, stored = "r = Reshape(x, k)  y = Conv(r, w)", "int64[4] k = {-1, 1, 8, 4}, float[2,1,1,1] w = {1, 2}"
    shown = facts_of_graph(_graph(nodes, stored, "N,8,4,1"))
    assert (shown.layout, shown.facts.channels, shown.facts.image_size) == ("NHWC", 1, (8, 4))


@pytest.mark.parametrize(
    ("shape", "target", "channels", "layout"),
    [
        ("N,8,4,1", "{-1, 8, 4, 1}", 8, "NCHW"),
        ("N,8,4,1", "{1, 8, 4}", 8, "NCHW"),
        ("N,1,4,1", "{-1, 1, 4, 1}", 1, "NCHW"),
        ("N,8,4,2", "{-1, 1, 16, 4}", 8, "NCHW"),
        ("N,8,4,1", "{-1, 1, 8, 4}", 1, "NHWC"),
    ],
)
def test_a_reshape_shows_the_layout_only_where_it_adds_the_axis_of_the_one_channel(shape, target, channels, layout):
    size = target.count(",") + 1
    shown = facts_of_graph(_graph("r = Reshape(x, k)  y = Relu(r)", f"int64[{size}] k = {target}", shape))
    assert (shown.layout, shown.facts.channels) == (layout, channels)


@pytest.mark.parametrize("to_nchw", ["Transpose<perm=[0,3,1,2]>(a)", "Reshape(a, k)"])
def test_a_normalization_may_stand_before_and_after_the_change_of_layout(to_nchw):
    nodes = f"a = Sub(x, m)  r = {to_nchw}  b = Div(r, s)  y = Conv(b, w)"
    stored = "int64[4] k = {-1, 1, 8, 4}, float[1,1,1] m = {120}, float[1,1,1] s = {60}, float[2,1,1,1] w = {1, 2}"
    shown = facts_of_graph(_graph(nodes, stored, "N,8,4,1"))
    assert (shown.facts.mean, shown.facts.std, shown.notes) == (*PIXELS, ())


def test_a_change_of_layout_back_ends_what_is_understood():
    nodes = "a = Transpose<perm=[0,3,1,2]>(x)  b = Transpose<perm=[0,2,3,1]>(a)  y = Div(b, s)"
    shown = facts_of_graph(_graph(nodes, "float s = {255}", "N,8,4,3"))
    assert (shown.layout, shown.facts.std) == ("NHWC", (1 / 255,))
    shown = facts_of_graph(_graph("a = Transpose<perm=[0,1,3,2]>(x)  y = Div(a, s)", "float s = {255}", "N,3,8,4"))
    assert (shown.layout, shown.facts.std) == ("NCHW", None)
    assert len(shown.notes) == 1
    assert "Transpose" in shown.notes[0]


def test_what_moves_behind_the_first_convolution_does_not_matter():
    shown = facts_of_graph(_graph("c = Conv(x, w)  y = Transpose<perm=[0,3,1,2]>(c)"))
    assert (shown.layout, shown.facts.channels) == ("NCHW", 1)


def test_a_reshape_that_adds_no_channel_axis_ends_what_is_understood():
    nodes = "r = Reshape(x, k)  t = Transpose<perm=[0,3,1,2]>(r)  d = Div(t, s)  y = Conv(d, w)"
    stored = "int64[4] k = {-1, 4, 8, 1}, float s = {255}, float[2,1,1,1] w = {1, 2}"
    shown = facts_of_graph(_graph(nodes, stored, "N,8,4,1"))
    assert (shown.layout, shown.facts.std) == ("NHWC", None)
    (note,) = shown.notes
    assert "begins with Reshape" in note


@pytest.mark.parametrize("node", ["Identity(x)", "Cast<to=1>(x)"])
def test_what_only_hands_values_on_does_not_matter(node):
    shown = facts_of_graph(
        _graph(f"i = {node}  d = Div(i, s)  y = Conv(d, w)", "float s = {255}, float[2,1,1,1] w = {1, 2}")
    )
    assert (shown.facts.mean, shown.facts.std, shown.notes) == (*PIXELS, ())


def test_one_channel_that_becomes_three_is_one_channel():
    nodes, stored = "n = Sub(x, m)  y = Conv(n, w)", "float[3,1,1] m = {0.4, 0.5, 0.6}, float[1,3,1,1] w = {1, 2, 3}"
    shown = facts_of_graph(_graph(nodes, stored))
    assert (shown.facts.channels, shown.facts.mean, shown.facts.std) == (1, *UNIT)


def test_an_image_that_two_nodes_read_shows_no_normalization():
    shown = facts_of_graph(
        _graph("n = Div(x, s)  k = Add(n, x)  y = Conv(k, w)", "float s = {255}, float[2,1,1,1] w = {1, 2}")
    )
    assert (shown.facts.mean, shown.notes) == (None, ())


# -- outputs


@pytest.mark.parametrize(
    ("ending", "head", "opset", "task", "activation"),
    [
        ("none", "gemm", 13, None, None),
        ("Sigmoid", "gemm", 13, "multilabel", "sigmoid"),
        ("Softmax", "gemm", 13, "multiclass", "softmax"),
        ("LogSoftmax", "gemm", 13, "multiclass", "softmax"),
        ("Softmax", "conv", 13, "multiclass", "softmax"),
        ("Softmax", "conv", 9, "multiclass", "softmax"),
        ("Sigmoid", "conv", 9, "multilabel", "sigmoid"),
    ],
)
def test_the_last_activation_is_the_task(ending, head, opset, task, activation):
    model = adopt(written(Encoding(ending=ending, head=head, opset=opset)), "file.onnx").model
    shown = facts_of_graph(model)
    assert shown.facts.task == task
    assert ("task" in shown.certain) == (task is not None)
    assert shown.outputs == {"scores": ShownOutput(5, activation)}
    assert scores_per_image(model) == 5


def _head(nodes: str, outputs: str) -> onnx.ModelProto:
    stored = "float[2,1,1,1] w = {1, 2}, float[1,2] one = {1, 2}, float[3,2] m = {1, 2, 3, 4, 5, 6}, "
    stored += "float[3,2,1,1] v = {1, 2, 3, 4, 5, 6}, int64[1] two = {2}, int64[2] last = {2,3}, int64[2] rows = {-1,3}"
    header = '<ir_version: 8, opset_import: ["" : 13]>'
    body = f"c = Conv(x, w)  p = GlobalAveragePool(c)  f = Flatten(p)  {nodes}"
    return onnx.parser.parse_model(f"{header} g (float[N,1,8,8] x) => ({outputs}) <{stored}> {{ {body} }}")


@pytest.mark.parametrize(
    ("nodes", "outputs", "task", "is_certain"),
    [
        ("y = Gemm<transB=1>(f, one)", "float[N,1] y", "regression", False),
        ("k = Gemm<transB=1>(f, one)  y = Sigmoid(k)", "float[N,1] y", "multilabel", True),
        ("k = Gemm<transB=1>(f, m)  s = Softmax(k)  y = Identity(s)", "float[N,3] y", "multiclass", True),
        ("k = Gemm<transB=1>(f, m)  y = Softmax<axis=0>(k)", "float[N,3] y", None, False),
        ("y = Gemm<transB=1>(f, m)", "float[N,3] y", None, False),
        ("y = Gemm<transB=1>(f, m)  z = Gemm<transB=1>(f, one)", "float[N,3] y, float[N,1] z", None, False),
        ("k = Gemm<transB=1>(f, m)  y = Sigmoid(k)  z = Relu(k)", "float[N,3] y, float[N,3] z", None, False),
        ("k = Gemm<transB=1>(f, m)  s = Sigmoid(k)  y = Cast<to=10>(s)", "float16[N,3] y", "multilabel", True),
        ("k = Gemm<transB=1>(f, m)  s = Sigmoid(k)  y = Unsqueeze(s, two)", "float[N,3,1] y", "multilabel", True),
        (
            "k = Gemm<transB=1>(f, m)  s = Softmax<axis=1>(k)  y = Unsqueeze(s, two)",
            "float[N,3,1] y",
            "multiclass",
            True,
        ),
        ("q = Conv(p, v)  s = Sigmoid(q)  y = Squeeze(s, last)", "float[N,3] y", "multilabel", True),
        ("q = Conv(p, v)  s = Sigmoid(q)  y = Flatten(s)", "float[N,3] y", "multilabel", True),
        ("q = Conv(p, v)  s = Sigmoid(q)  y = Reshape(s, rows)", "float[N,3] y", "multilabel", True),
        ("y = ReduceMean<axes=[2,3], keepdims=0>(c)", "float[N,2] y", "features", True),
        ("y = ReduceMax<axes=[2,3], keepdims=0>(c)", "float[N,2] y", "features", True),
        ("q = GlobalMaxPool(c)  y = Flatten(q)", "float[N,2] y", "features", True),
        ("q = AveragePool<kernel_shape=[8,8]>(c)  y = Flatten(q)", "float[N,2] y", "features", True),
        ("y = Dropout(f)", "float[N,2] y", "features", True),
        ("y = Identity(f)", "float[N,2] y", "features", True),
        ("y = Identity(p)", "float[N,2,1,1] y", "features", True),
        ("y = Identity(c)", "float[N,2,8,8] y", None, False),
        ("y = Softmax<axis=1>(c)", "float[N,2,8,8] y", "multiclass", True),
        ("y = Softmax<axis=-1>(c)", "float[N,2,8,8] y", None, False),
        ("y = Flatten(x)", "float[N,64] y", None, False),
        ("k = Gemm<transB=1>(f, m)  y = ArgMax<axis=1, keepdims=0>(k)", "int64[N] y", None, False),
        ("y = Sigmoid(f)", "float[N,2] y", "multilabel", True),
    ],
)
def test_the_outputs_say_what_they_mean_or_nothing(nodes, outputs, task, is_certain):
    shown = facts_of_graph(_head(nodes, outputs))
    assert (shown.facts.task, "task" in shown.certain) == (task, is_certain)
    assert list(shown.outputs) == [part.split()[-1] for part in outputs.split(", ")]


def test_each_output_is_described():
    model = _head("y = Gemm<transB=1>(f, m)  k = Gemm<transB=1>(f, one)  z = Sigmoid(k)", "float[N,3] y, float[N,1] z")
    assert facts_of_graph(model).outputs == {"y": ShownOutput(3), "z": ShownOutput(1, "sigmoid")}
    assert scores_per_image(model) is None
    model.graph.output[0].name = "logits"  # which counts among several
    assert scores_per_image(model) == 3


@pytest.mark.parametrize(
    ("shape", "count"),
    [("N,7", 7), ("N,7,1,1", 7), ("N,7,1", 7), ("N,7,2,1", None), ("N,k", None), ("7", None), ("N,7,1,h", None)],
)
def test_scores_stand_in_rows_or_in_one_pixel(shape, count):
    text = f'<ir_version: 8, opset_import: ["" : 13]> g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}'
    assert scores_per_image(onnx.parser.parse_model(text)) == count

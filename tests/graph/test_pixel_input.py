"""Graphs that take pixels: the same numbers as with normalization outside, at the border too, in float and in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.nodes import new_initializer, new_node
from densenet_deploy.graph.pixel_input import (
    pixel_front,
    read_pixels,
    takes_pixels,
    with_pixel_input,
    without_pixel_input,
    zero_point_of,
)
from densenet_deploy.graph.shown_facts import facts_of_graph
from densenet_deploy.manifest import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from densenet_deploy.runtime.preprocess import normalized
from tests.graph.onnx_text import constants

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), np.uint8)
WEIGHT = np.random.default_rng(1).standard_normal((5, 3, 3, 3))
IMAGENET = Preprocessing((9, 11), "none", IMAGENET_MEAN, IMAGENET_STD)
# Sums of 27 float32 products near 3, in another order and with other factors: a few ulps.
ROUNDING = 3e-5


def network(
    body: str = "y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)", inputs: str = "float[N,3,9,11] x"
):
    """A network of one padded convolution with a bias."""
    numbers = constants(w=WEIGHT, b=np.arange(5), third=1 / 3, mean=np.reshape([10.0, 20, 30], (1, 1, 1, 3)))
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g ({inputs}) => (float y) <{numbers}> {{ {body} }}"""
    return onnx.parser.parse_model(text)


def run(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    """The first output, with the nodes as they stand."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})[0]


NORMALIZATIONS = {
    "ImageNet": IMAGENET,
    "halves, whose zero lies between two levels": Preprocessing((9, 11), "none", (0.5,) * 3, (0.5,) * 3),
    "0 to 1": Preprocessing((9, 11), "none", (0.0,) * 3, (1.0,) * 3),
    "0 to 255": Preprocessing((9, 11), "none", (0.0,) * 3, (1 / 255,) * 3),
    "far apart": Preprocessing((9, 11), "none", (0.1, 0.5, 0.9), (0.1, 1.0, 3.0)),
    "beyond white": Preprocessing((9, 11), "none", (1.5, 1.2, 1.3), (0.5,) * 3),
}


@pytest.mark.parametrize("preprocessing", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_pixels_give_what_normalized_images_give(preprocessing):
    plain = network()
    model = with_pixel_input(plain, preprocessing)
    expected = run(plain, normalized(PIXELS, preprocessing))
    np.testing.assert_allclose(run(model, PIXELS), expected, rtol=ROUNDING, atol=ROUNDING * np.abs(expected).max())
    given = model.graph.input[0]
    assert (given.name, given.type.tensor_type.elem_type) == ("x", onnx.TensorProto.UINT8)
    assert [dim.dim_value or dim.dim_param for dim in given.type.tensor_type.shape.dim] == ["N", 9, 11, 3]
    assert [(node.op_type, node.name) for node in model.graph.node[:-1]] == [
        ("Cast", "pixels.cast"),
        ("Transpose", "pixels.transpose"),
        ("Mul", "pixels.normalize.scale"),
        ("Add", "pixels.normalize.shift"),
    ]
    assert (takes_pixels(plain), takes_pixels(model)) == (False, True)


@pytest.mark.parametrize("preprocessing", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_what_was_put_in_front_comes_off_again(preprocessing):
    plain = network()
    again = without_pixel_input(with_pixel_input(plain, preprocessing), preprocessing, "net")
    feed = normalized(PIXELS, preprocessing)
    np.testing.assert_array_equal(run(again, feed), run(plain, feed))
    assert [node.op_type for node in again.graph.node] == ["Conv"]
    assert {tensor.name for tensor in again.graph.initializer} == {"w", "b"}
    assert again.graph.input[0].type == plain.graph.input[0].type


PADDED = "Conv <pads = [1, 1, 1, 1]> (m, w, b)"
FOREIGN = {
    "scaled, then moved": f"c = Cast <to = 1> (x)  d = Sub (c, mean)  e = Mul (d, third)  "
    f"m = Transpose <perm = [0, 3, 1, 2]> (e)  y = {PADDED}",
    "moved as uint8": "t = Transpose <perm = [0, 3, 1, 2]> (x)  c = Cast <to = 1> (t)  "
    f"m = Mul (c, third)  y = {PADDED}",
    "cast only": f"c = Cast <to = 1> (x)  m = Transpose <perm = [0, 3, 1, 2]> (c)  y = {PADDED}",
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_what_other_exporters_put_in_front_is_found_and_comes_off(body):
    model = network(body, "uint8[N,9,11,3] x")
    shown = facts_of_graph(model)
    assert {"mean", "std", "channels", "image_size"} <= shown.certain
    assert (shown.facts.channels, shown.facts.image_size, shown.layout) == (3, (9, 11), "NHWC")
    mean, std = ((value * 3)[:3] for value in (shown.facts.mean, shown.facts.std))
    stated = Preprocessing((9, 11), "none", mean, std)
    again = without_pixel_input(model, stated, "net")
    expected = run(model, PIXELS)
    found = run(again, normalized(PIXELS, stated))
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING * np.abs(expected).max())


REFUSED = {
    "another first node": ("r = Max (x, x)  c = Cast <to = 1> (r)  y = Transpose <perm = [0, 3, 1, 2]> (c)", "Max"),
    "no transpose": ("c = Cast <to = 1> (x)  y = Mul (c, third)", "Cast"),
    "another transpose": ("c = Cast <to = 1> (x)  y = Transpose <perm = [0, 3, 2, 1]> (c)", "Cast"),
    "half floats": ("c = Cast <to = 10> (x)  t = Transpose <perm = [0, 3, 1, 2]> (c)  y = Cast <to = 1> (t)", "Cast"),
    "no cast": ("y = Transpose <perm = [0, 3, 1, 2]> (x)", "Transpose"),
}


@pytest.mark.parametrize(("body", "first"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_normalization_is_refused_by_its_first_node(body, first):
    kind = "uint8" if "Cast" not in body else "float"
    model = network(body, "uint8[N,9,11,3] x")
    model.graph.output[0].type.tensor_type.elem_type = {"uint8": 2, "float": 1}[kind]
    with pytest.raises(ModelFileError) as caught:
        without_pixel_input(model, IMAGENET, "net.onnx")
    assert caught.value.subject == "net.onnx"
    assert f"begins with {first}" in caught.value.why


@pytest.mark.parametrize("name", ["mean", "std"])
def test_other_numbers_than_the_stated_ones_are_refused(name):
    model = with_pixel_input(network(), IMAGENET)
    values = [0.485, 0.456, 0.406] if name == "mean" else [0.229, 0.224, 0.225]
    other = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | {name: (*values[:2], values[2] + 1e-3)}
    with pytest.raises(ModelFileError) as caught:
        without_pixel_input(model, Preprocessing((9, 11), "none", **other), "net")
    assert f" {name} " in caught.value.why


@pytest.mark.parametrize(
    ("inputs", "is_found"),
    [("uint8[N,9,11,3] x", True), ("float[N,9,11,3] x", False), ("uint8[N,9,11,3] x, float z", False)],
)
def test_the_front_is_that_of_the_only_input_if_that_holds_pixels(inputs, is_found):
    graph = ir.from_proto(network(FOREIGN["cast only"], inputs)).graph
    assert (pixel_front(graph) is not None) == is_found


def test_a_learnt_norm_belongs_to_the_network():
    numbers = "c = Cast <to = 1> (x)  t = Transpose <perm = [0, 3, 1, 2]> (c)  y = BatchNormalization (t, s, s, s, s)"
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g (uint8[N,9,11,3] x) => (float y)
        <float[3] s = {{2, 3, 4}}> {{ {numbers} }}"""
    front = pixel_front(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))).graph)
    assert front is not None
    assert (front.normalized.name, front.affine.scale.tolist(), front.affine.shift.tolist()) == ("t", [1], [0])


# --- INT8: the first convolution reads the pixels


@pytest.mark.parametrize(
    ("mean", "zero_point"), [(0.0, 0), (0.5, 127), (128 / 255, 127), (129 / 255, 129), (2.0, 255), (-1.0, 0)]
)
def test_the_zero_point_is_near_the_mean_and_never_that_of_signed_values(mean, zero_point):
    assert zero_point_of(Preprocessing(mean=(mean,), std=(1.0,))) == zero_point


@pytest.mark.parametrize(
    ("mean", "filling"),
    [
        ((0.2,) * 3, 51 + 1),
        ((0.8,) * 3, 204 - 1),
        ((0.4, 0.45, 0.5), 115 + 10),
        ((0.0, 0.4, 0.5), 76 + 46),
        ((9,) * 3, 0),
    ],
)
def test_the_further_channel_holds_no_more_than_its_weights_need(mean, filling):
    """With weights of one it stands for the sum of (z − mean)/std, beside weights up to 4: −0.143/4 is 9.1 levels."""
    numbers = constants(w=np.ones((1, 3, 1, 1)))
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float y) <{numbers}>
        {{ y = Conv (x, w) }}"""
    graph = ir.from_proto(onnx.parser.parse_model(text))
    preprocessing = Preprocessing(4, "none", mean, (1.0, 0.5, 0.25))
    read_pixels(graph, preprocessing)
    pad = next(node for node in graph.graph if node.op_type == "Pad")
    value = float(pad.inputs[2].const_value.numpy()) * 255 + zero_point_of(preprocessing)
    assert value == pytest.approx(filling, abs=1e-3)


def test_the_further_channel_holds_what_the_neediest_output_needs_beside_the_largest_weight_of_each():
    """Of mean 0, 0 and 1 the zero point is 85, and (z − mean)·W sums to 1/3 + 1/3 + 2/3 where the last weight is −1."""
    preprocessing = Preprocessing(4, "none", (0.0, 0.0, 1.0), (1.0, 1.0, 1.0))

    def filling(*rows):
        numbers = constants(w=np.reshape(rows, (-1, 3, 1, 1)))
        text = f"""<ir_version: 9, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float y) <{numbers}>
            {{ y = Conv (x, w) }}"""
        graph = ir.from_proto(onnx.parser.parse_model(text))
        read_pixels(graph, preprocessing)
        pad = next(node for node in graph.graph if node.op_type == "Pad")
        return round(float(pad.inputs[2].const_value.numpy()) * 255)

    assert filling((1, 1, -1)) == 255 - 85  # 4/3 of 255 levels, of which there are so many above the zero point
    assert filling((1, 1, 3)) == 114  # |1/3 + 1/3 − 6/3| beside a weight of 3 is 113.3 levels
    assert filling((0.1, 0.1, 0.3)) == 114
    assert filling((1, 1, 1)) == 1  # whose sum is 0
    assert filling((1, 1, 3), (8, 8, 8)) == 114
    assert filling((1, 1, 3), (0.1, 0.1, 0.1)) == 114
    assert filling((0, 0, 0), (1, 1, 1)) == 1


@pytest.mark.parametrize("preprocessing", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
@pytest.mark.parametrize("is_integer", [True, False])
def test_a_convolution_of_pixels_is_exact_at_the_border_too(preprocessing, is_integer):
    """Only the weights are left to quantize: the levels of the image and of its padding are exact."""
    plain = network()
    graph = ir.from_proto(plain)
    name = read_pixels(graph, preprocessing)
    assert name == "pixels.levels"
    feed = normalized(PIXELS, preprocessing)
    expected = run(plain, feed)
    close = {"rtol": ROUNDING, "atol": 10 * ROUNDING * np.abs(expected).max()}
    np.testing.assert_allclose(run(ir.to_proto(graph), feed), expected, **close)
    conv = next(node for node in graph.graph if node.op_type == "Conv")
    assert [str(size) for size in conv.inputs[0].shape] == ["N", "4", "9", "11"]
    if is_integer:
        numbers = [
            new_initializer(graph.graph, "s", np.float32(1 / 255)),
            new_initializer(graph.graph, "z", np.uint8(zero_point_of(preprocessing))),
        ]
        quantize = new_node("QuantizeLinear", "q", [conv.inputs[0], *numbers])
        dequantize = new_node("DequantizeLinear", "d", [quantize.outputs[0], *numbers])
        graph.graph.insert_before(conv, [quantize, dequantize])
        conv.replace_input_with(0, dequantize.outputs[0])
    model = with_pixel_input(ir.to_proto(graph), preprocessing)
    first = ["Transpose", "Pad", "DequantizeLinear"] if is_integer else ["Cast", "Transpose", "Mul", "Add", "Pad"]
    assert [node.op_type for node in model.graph.node] == [*first, "Conv"]
    if not is_integer:
        names = ["pixels.cast", "pixels.transpose", "pixels.scaled.scale", "pixels.scaled.shift", "pixels.levels"]
        assert [node.name for node in model.graph.node[:-1]] == names
    np.testing.assert_allclose(run(model, PIXELS), expected, **close)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu (x)  y = Conv (r, w, b)",
        "r = Relu (x)  c = Conv (x, w, b)  y = Identity (c)",
        "v = Relu (w)  y = Conv (x, v, b)",
    ],
)
def test_what_is_not_one_convolution_of_constant_weights_keeps_its_input(body):
    graph = ir.from_proto(network(body))
    before = [(node.op_type, [value.name for value in node.inputs]) for node in graph.graph]
    assert read_pixels(graph, IMAGENET) is None
    assert [(node.op_type, [value.name for value in node.inputs]) for node in graph.graph] == before


def test_a_grouped_convolution_keeps_its_input():
    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float y)
        <float[3,1,1,1] w = {1, 2, 3}> { y = Conv <group = 3> (x, w) }"""
    assert read_pixels(ir.from_proto(onnx.parser.parse_model(text)), IMAGENET) is None

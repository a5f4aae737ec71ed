"""The onnxruntime recipe on small graphs: which integer operators it writes, and that they compute the same."""

from __future__ import annotations

import pytest

from densenet_deploy.graph.tensor_changes import TensorChange, read_tensor_changes
from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
from densenet_deploy.quantization.scales import QuantizedType
from tests.quantization.recipes.written import (
    FINE,
    HALF,
    SHIFTED,
    SIGNED,
    Case,
    constant_of,
    each,
    graph_of,
    lines,
    outputs_of,
    same,
    write,
)

BITS = 7
"""Exact on every CPU: 8-bit weights saturate where there is no VNNI."""


@each(
    Case(
        "convolutions keep how their windows move",
        """
        [c1] a = Conv<pads=[1,1,1,1],strides=[2,2],dilations=[1,1]>(x, wide, bias)
        [c2] b = Conv<auto_pad="SAME_UPPER">(a, w)
        y = Abs(b)
        """,
        {"x": HALF, "a": SIGNED, "b": SHIFTED},
        ("c1", "c2"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,3,3], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            dilations=(1,1) group=1 kernel_shape=(3,3) pads=(1,1,1,1) strides=(2,2)
        b:codes = QLinearConv(a:codes, f32:0.5, u8:128, i8[2,2,1,1], f32[2], i8[2], f32:0.25, u8:100,
            i32[2]) auto_pad=SAME_UPPER group=1 kernel_shape=(1,1)
        b:float = DequantizeLinear(b:codes, f32:0.25, u8:100)
        y = Abs(b:float)
        """,
    ),
    Case(
        "a convolution of groups",
        """
        [c] a = Conv<group=2>(x, each)
        y = Abs(a)
        """,
        {"x": HALF, "a": SIGNED},
        ("c",),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,1,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=2 kernel_shape=(1,1)
        a:float = DequantizeLinear(a:codes, f32:0.5, u8:128)
        y = Abs(a:float)
        """,
        options={"per_channel": False},
    ),
    Case(
        "one scale for all rows",
        """
        [c] a = Conv(x, w)
        y = Abs(a)
        """,
        {"x": HALF, "a": SIGNED},
        ("c",),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,1,1], f32:0.015873, i8:0, f32:0.5, u8:128,
            i32[2]) group=1 kernel_shape=(1,1)
        a:float = DequantizeLinear(a:codes, f32:0.5, u8:128)
        y = Abs(a:float)
        """,
        options={"per_channel": False},
    ),
    Case(
        "a block with a norm and its ReLU",
        """
        [c1] a = Conv(x, w)
        [n] n = BatchNormalization<epsilon=0.0>(a, gamma, beta, mean, variance)
        r = Relu(n)
        [c2] b = Conv(r, v)
        [j] c = Concat<axis=1>(a, b)
        y = Abs(c)
        """,
        {"x": HALF, "a": SIGNED, "r": HALF, "b": SIGNED, "c": SIGNED},
        ("c1", "n", "c2", "j"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        r:codes = QLinearConv(a:codes, f32:0.5, u8:128, i8[2,1,1,1], f32[2], i8[2], f32:0.5, u8:0, i32[2])
            group=2 kernel_shape=(1,1)
        b:codes = QLinearConv(r:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        c:codes = Concat(a:codes, b:codes) axis=1
        c:float = DequantizeLinear(c:codes, f32:0.5, u8:128)
        y = Abs(c:float)
        """,
        graph={"outputs": "float[1,4,H,W] y"},
    ),
    Case(
        "a ReLU that is a segment is clamped first",
        """
        [c1] a = Conv(x, w)
        r = Relu(a)
        [c2] b = Conv(r, v)
        [j] c = Concat<axis=1>(r, b)
        y = Abs(c)
        """,
        {"x": HALF, "r": SIGNED, "b": SIGNED, "c": SIGNED},
        ("c1", "c2", "j"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        r:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.24902, u8:0, i32[2])
            group=1 kernel_shape=(1,1)
        b:codes = QLinearConv(r:codes, f32:0.24902, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128,
            i32[2]) group=1 kernel_shape=(1,1)
        r:requantized = QLinearConv(r:codes, f32:0.24902, u8:0, i8[2,1,1,1], f32[2], i8[2], f32:0.5, u8:128,
            i32[2]) group=2 kernel_shape=(1,1)
        c:codes = Concat(r:requantized, b:codes) axis=1
        c:float = DequantizeLinear(c:codes, f32:0.5, u8:128)
        y = Abs(c:float)
        """,
        graph={"outputs": "float[1,4,H,W] y"},
    ),
    Case(
        "a second type of a value of unknown size goes through float",
        """
        g = Abs(x)
        [c] a = Conv(g, w)
        [j] c = Concat<axis=1>(g, a)
        y = Abs(c)
        """,
        {"g": HALF, "a": SIGNED, "c": SIGNED},
        ("c", "j"),
        """
        g = Abs(x)
        g:codes = QuantizeLinear(g, f32:0.5, u8:0)
        a:codes = QLinearConv(g:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        g:numbers = DequantizeLinear(g:codes, f32:0.5, u8:0)
        g:numbers:codes = QuantizeLinear(g:numbers, f32:0.5, u8:128)
        c:codes = Concat(g:numbers:codes, a:codes) axis=1
        c:float = DequantizeLinear(c:codes, f32:0.5, u8:128)
        y = Abs(c:float)
        """,
        graph={"shapes": False, "outputs": "float[1,4,H,W] y"},
    ),
    Case(
        "a second type of a value of known size",
        """
        g = Abs(x)
        [c] a = Conv(g, w)
        [j] c = Concat<axis=1>(g, a)
        y = Abs(c)
        """,
        {"g": HALF, "a": SIGNED, "c": SIGNED},
        ("c", "j"),
        """
        g = Abs(x)
        g:codes = QuantizeLinear(g, f32:0.5, u8:0)
        a:codes = QLinearConv(g:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        g:requantized = QLinearConv(g:codes, f32:0.5, u8:0, i8[2,1,1,1], f32[2], i8[2], f32:0.5, u8:128,
            i32[2]) group=2 kernel_shape=(1,1)
        c:codes = Concat(g:requantized, a:codes) axis=1
        c:float = DequantizeLinear(c:codes, f32:0.5, u8:128)
        y = Abs(c:float)
        """,
        graph={"outputs": "float[1,4,H,W] y"},
    ),
    Case(
        "clips",
        """
        [c1] a = Conv(x, w)
        [m] b = Max(a, low)
        [n] c = Min(b, high)
        [c2] d = Conv(c, v)
        y = Abs(d)
        """,
        {"x": HALF, "a": SIGNED, "b": SIGNED, "c": SIGNED, "d": SHIFTED},
        ("c1", "m", "n", "c2"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        b:codes = Max(a:codes, u8[2,1,1])
        c:codes = Min(b:codes, u8[2,1,1])
        d:codes = QLinearConv(c:codes, f32:0.5, u8:128, i8[2,2,1,1], f32[2], i8[2], f32:0.25, u8:100,
            i32[2]) group=1 kernel_shape=(1,1)
        d:float = DequantizeLinear(d:codes, f32:0.25, u8:100)
        y = Abs(d:float)
        """,
    ),
    Case(
        "pools, whose results need no types",
        """
        [p] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
        [q] q = AveragePool<kernel_shape=[2,1], strides=[2,1]>(p)
        [c] a = Conv(q, w)
        y = Abs(a)
        """,
        {"x": FINE, "a": SIGNED},
        ("p", "q", "c"),
        """
        x:codes = QuantizeLinear(x, f32:0.25, u8:0)
        p:codes = MaxPool(x:codes) kernel_shape=(2,2) strides=(2,2)
        q:codes = QLinearConv(p:codes, f32:0.25, u8:0, i8[2,1,2,1], f32[2], i8[2], f32:0.25, u8:0, i32[2])
            group=2 kernel_shape=(2,1) strides=(2,1)
        a:codes = QLinearConv(q:codes, f32:0.25, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        a:float = DequantizeLinear(a:codes, f32:0.5, u8:128)
        y = Abs(a:float)
        """,
    ),
    Case(
        "float readers share one conversion, and read what was float as it was",
        """
        g = Neg(x)
        [c] a = Conv(g, w)
        d = Abs(a)
        e = Clip(a, , three)
        f = Add(d, e)
        y = Add(f, g)
        """,
        {"g": SIGNED, "a": SIGNED},
        ("c",),
        """
        g = Neg(x)
        g:codes = QuantizeLinear(g, f32:0.5, u8:128)
        a:codes = QLinearConv(g:codes, f32:0.5, u8:128, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        a:float = DequantizeLinear(a:codes, f32:0.5, u8:128)
        d = Abs(a:float)
        e = Clip(a:float, , f32:3)
        f = Add(d, e)
        y = Add(f, g)
        """,
    ),
    Case(
        "a pool of which an output leaves stays float",
        """
        [c1] a = Conv(x, w)
        [p] p, i = MaxPool<kernel_shape=[1,1]>(a)
        y = Neg(p)
        """,
        {"x": HALF, "a": SIGNED, "p": SIGNED},
        ("c1",),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        a:codes = QLinearConv(x:codes, f32:0.5, u8:0, i8[2,2,1,1], f32[2], i8[2], f32:0.5, u8:128, i32[2])
            group=1 kernel_shape=(1,1)
        a:float = DequantizeLinear(a:codes, f32:0.5, u8:128)
        p, i = MaxPool(a:float) kernel_shape=(1,1)
        y = Neg(p)
        """,
        graph={"outputs": "float[1,2,4,4] y, float[1,2,4,4] p"},
    ),
)
def test_what_is_written(case):
    case.check("onnxruntime", weight_bits=BITS)


CONV = "[c] a = Conv(x, w)"
CLIP = f"{CONV}  [m] m = Max(a, low)  y = Abs(m)"
NORM = f"{CONV}  [n] n = BatchNormalization<epsilon=0.0>(a, gamma, beta, mean, variance)  y = Abs(n)"
ALL = {"x": HALF, "a": SIGNED, "m": SIGNED, "n": SIGNED, "y": SIGNED, "r": HALF, "c": SIGNED}
KERNEL = {"inputs": "float[1,2,4,4] x, float[2,2,1,1] k"}
ROW = {"inputs": "float[1,2,4,4] x, float[2] k"}


@pytest.mark.parametrize(
    ("body", "types", "options", "graph", "left"),
    [
        (f"{CONV}  y = Abs(a)", ALL, {"float_nodes": ("c",)}, {}, "a = Conv(x, f32[2,2,1,1])"),
        ("[c] y = Conv(x, w)", ALL, {}, {}, "y = Conv(x, f32[2,2,1,1])"),
        (f"{CONV}  y = Abs(a)", {"a": SIGNED}, {}, {}, "a = Conv(x, f32[2,2,1,1])"),
        (f"{CONV}  y = Abs(a)", {"x": HALF}, {}, {}, "a = Conv(x, f32[2,2,1,1])"),
        ("a = Conv(x, k)  y = Abs(a)", ALL, {}, KERNEL, "a = Conv(x, k)"),
        ("a = Conv(x, w, k)  y = Abs(a)", ALL, {}, ROW, "a = Conv(x, f32[2,2,1,1], k)"),
        (f"{CONV}  y = Relu(a)", ALL, {}, {}, "y = Relu(a:float)"),
        (f"{CONV}  r = Relu(a)  s = Abs(a)  y = Add(r, s)", ALL, {}, {}, "r = Relu(a:float)"),
        (
            NORM.replace("gamma", "k"),
            ALL,
            {},
            ROW,
            "n = BatchNormalization(a:float, k, f32[2], f32[2], f32[2]) epsilon=0.0",
        ),
        (
            NORM,
            ALL,
            {"float_nodes": ("n",)},
            {},
            "n = BatchNormalization(a:float, f32[2], f32[2], f32[2], f32[2]) epsilon=0.0",
        ),
        (CLIP, ALL, {"float_nodes": ("m",)}, {}, "m = Max(a:float, f32[2,1,1])"),
        (CLIP, ALL | {"m": FINE}, {}, {}, "m = Max(a:float, f32[2,1,1])"),
        (CLIP, {"x": HALF}, {}, {}, "m = Max(a, f32[2,1,1])"),
        (f"{CONV}  m = Min(a, x)  y = Abs(m)", ALL, {}, {}, "m = Min(a:float, x)"),
        ("p = MaxPool<kernel_shape=[1,1]>(x)  y = Abs(p)", {}, {}, {}, "p = MaxPool(x) kernel_shape=(1,1)"),
        ("p = AveragePool<kernel_shape=[1,1]>(x)  y = Abs(p)", {}, {}, {}, "p = AveragePool(x) kernel_shape=(1,1)"),
        (
            "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)  y = Abs(p)",
            ALL,
            {},
            {},
            "p = AveragePool(x) kernel_shape=(3,3) pads=(1,1,1,1)",
        ),
        (
            "b = Abs(x)  p = AveragePool<kernel_shape=[1,1]>(b)  y = Abs(p)",
            {"b": HALF},
            {},
            {"shapes": False},
            "p = AveragePool(b) kernel_shape=(1,1)",
        ),
        (
            f"{CONV}  c = Concat<axis=1>(a, x)  y = Abs(c)",
            {"x": HALF, "a": SIGNED},
            {},
            {"outputs": "float[1,4,4,4] y"},
            "c = Concat(a:float, x) axis=1",
        ),
    ],
    ids=[
        "a named convolution",
        "a convolution whose result leaves the graph",
        "a convolution of a value without a type",
        "a convolution whose result has no type",
        "weights from outside",
        "a bias from outside",
        "a ReLU that leaves the graph",
        "a ReLU beside another reader",
        "a norm with numbers from outside",
        "a named norm",
        "a named clip",
        "a clip with a type of its own",
        "a clip without types",
        "a clip without a constant",
        "a maximum pool without a type",
        "an average pool without a type",
        "an average pool with pads",
        "an average pool of an unknown number of channels",
        "a concat without a type",
    ],
)
def test_what_stays_float(body, types, options, graph, left):
    model = graph_of(body, **graph)
    before = outputs_of(model)
    write("onnxruntime", model, types, weight_bits=BITS, **options)
    assert left in lines(model)
    same(model, before)


def test_operators_of_other_domains_are_left_alone():
    model = graph_of("a = other.Conv(x, w)  y = Abs(a)", shapes=False)
    assert write("onnxruntime", model, ALL) == ()
    assert lines(model) == ["a = Conv(x, f32[2,2,1,1])", "y = Abs(a)"]
    fused = graph_of("a = Conv(x, w)  r = other.Relu(a)  y = Abs(r)", shapes=False)
    write("onnxruntime", fused, ALL)
    assert "r = Relu(a:float)" in lines(fused)


def test_numbers_are_stored_under_the_name_of_the_value_they_belong_to():
    model = graph_of("a = Conv(x, w, bias)  m = Max(a, low)  q = AveragePool<kernel_shape=[2,2]>(m)  y = Abs(q)")
    write("onnxruntime", model, {"x": HALF, "a": SHIFTED, "m": SHIFTED, "q": SHIFTED})
    names = ("x.codes", "a:codes.input", "a:codes.output", "q:codes.output", "q.codes")
    numbers = {name: (constant_of(model, f"{name}_scale"), constant_of(model, f"{name}_zero_point")) for name in names}
    assert numbers == dict.fromkeys(names[:2], (0.5, 0)) | dict.fromkeys(names[2:], (0.25, 100))
    assert constant_of(model, "a:codes.weight") == [[[[127]], [[127]]], [[[-127]], [[127]]]]
    assert constant_of(model, "a:codes.weight_scale") == pytest.approx([1 / 127] * 2)
    assert constant_of(model, "a:codes.weight_zero_point") == [0, 0]
    assert constant_of(model, "a:codes.bias") == [254, -508]  # of 0.5/127
    assert constant_of(model, "m.bound") == [[[100]], [[108]]]
    assert constant_of(model, "q:codes.weight") == [[[[127, 127], [127, 127]]]] * 2
    assert constant_of(model, "q:codes.weight_scale") == pytest.approx([0.25 / 127] * 2)
    assert constant_of(model, "q:codes.bias") == [0, 0]


def test_a_bound_beyond_all_quantized_values_is_held_by_the_convolution_after_it():
    narrow = QuantizedType(1 / 64, 128)  # up to 127/64
    model = graph_of("a = Conv(x, w)  m = Max(a, low)  b = Conv(m, v, bias)  y = Abs(b)")
    write("onnxruntime", model, {"x": HALF, "a": narrow, "m": narrow, "b": SIGNED})
    assert constant_of(model, "m.bound") == [[[128]], [[255]]]
    assert constant_of(model, "b:codes.bias") == [65 * 127, -129 * 127]  # 1 + 1/64 and -2 - 1/64, of 1/64/127


def test_quantized_forms_are_recorded_for_comparisons_layer_by_layer():
    model = graph_of("a = Conv(x, w)  r = Relu(a)  c = Concat<axis=1>(r, x)  y = Abs(c)")
    write("onnxruntime", model, {"x": SIGNED, "r": SIGNED, "c": SIGNED})
    clamped = 0.5 * 127 / 255
    assert read_tensor_changes(model.metadata_props) == {
        "x:codes": TensorChange("x", scale=0.5, zero_point=128),
        "r:codes": TensorChange("r", scale=clamped, zero_point=0),
        "r:requantized": TensorChange("r", scale=0.5, zero_point=128),
        "c:codes": TensorChange("c", scale=0.5, zero_point=128),
    }


def test_a_relu_that_is_a_segment_keeps_everything_up_to_the_highest_value_of_the_bus():
    """Not half of the range: where the bus has little below zero, that is less than its ReLU lets through."""
    low = QuantizedType(0.5, 55)
    model = graph_of("a = Conv(x, w)  r = Relu(a)  c = Concat<axis=1>(r, x)  y = Abs(c)")
    write("onnxruntime", model, {"x": low, "r": low, "c": low})
    assert constant_of(model, "r:codes.output_scale") == pytest.approx(0.5 * 200 / 255)


def test_it_is_simulated_as_for_openvino():
    body, types = "[c] y = Conv(x, w)", {"x": HALF}
    openvino, simulated = graph_of(body), graph_of(body)
    write("openvino", openvino, types)
    recipes.get("onnxruntime")().simulate(simulated, types, RecipeOptions())
    assert lines(simulated) == lines(openvino)


def test_norms_become_clips_first_and_buses_are_stored():
    assert (recipes.get("onnxruntime").passes, recipes.get("onnxruntime").stores_bus) == (("norm-to-clip",), True)

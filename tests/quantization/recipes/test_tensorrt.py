"""The tensorrt recipe on small graphs: which pairs it inserts, its FP16 numbers, and that they compute the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
from densenet_deploy.quantization.recipes.tensorrt import fp16_at_least, symmetric_scale
from densenet_deploy.quantization.scales import QuantizedType
from tests.quantization.recipes.written import (
    HALF,
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

FP16 = 0.02
"""A scale of weights is off by up to 2^-10, which shows in sums of about 20."""


@each(
    Case(
        "pairs where convolutions read, and nowhere else",
        """
        [c1] s = Conv(x, w)
        [n] n = BatchNormalization<epsilon=0.0>(s, gamma, beta, mean, variance)
        r = Relu(n)
        [c2] a = Conv(r, v, bias)
        [j] c = Concat<axis=1>(s, a)
        t = Relu(c)
        [c3] y = Conv(t, u)
        """,
        {"x": HALF, "s": SIGNED, "r": SIGNED, "a": SIGNED, "c": SIGNED, "t": SIGNED},
        ("c2", "c3"),
        """
        x:fp16 = Cast(x) to=10
        s = Conv(x:fp16, f16[2,2,1,1])
        n = BatchNormalization(s, f16[2], f16[2], f16[2], f16[2]) epsilon=0.0
        r = Relu(n)
        r:codes = QuantizeLinear(r, f16:0.5, i8:0)
        r:quantized = DequantizeLinear(r:codes, f16:0.5, i8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f16[2], i8[2]) axis=0
        a = Conv(r:quantized, v:quantized, f16[2])
        c = Concat(s, a) axis=1
        t = Relu(c)
        t:codes = QuantizeLinear(t, f16:0.5, i8:0)
        t:quantized = DequantizeLinear(t:codes, f16:0.5, i8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f16[2], i8[2]) axis=0
        y:fp16 = Conv(t:quantized, u:quantized)
        y = Cast(y:fp16) to=1
        """,
        tolerance=FP16,
    ),
    Case(
        "convolutions that read one value share its pair, and their weights",
        """
        [c1] s = Conv(x, w)
        [n] n = BatchNormalization<epsilon=0.0>(s, gamma, beta, mean, variance)
        r = Relu(n)
        [c2] a = Conv(r, v)
        [c3] b = Conv(r, v)
        y = Add(a, b)
        """,
        {"x": HALF, "r": SIGNED},
        ("c2", "c3"),
        """
        x:fp16 = Cast(x) to=10
        s = Conv(x:fp16, f16[2,2,1,1])
        n = BatchNormalization(s, f16[2], f16[2], f16[2], f16[2]) epsilon=0.0
        r = Relu(n)
        r:codes = QuantizeLinear(r, f16:0.5, i8:0)
        r:quantized = DequantizeLinear(r:codes, f16:0.5, i8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f16[2], i8[2]) axis=0
        a = Conv(r:quantized, v:quantized)
        v:quantized_ = DequantizeLinear(i8[2,2,1,1], f16[2], i8[2]) axis=0
        b = Conv(r:quantized, v:quantized_)
        y:fp16 = Add(a, b)
        y = Cast(y:fp16) to=1
        """,
        tolerance=FP16,
    ),
    Case(
        "one scale for all rows",
        """
        s = Relu(x)
        [c] y = Conv(s, w)
        """,
        {"s": SIGNED},
        ("c",),
        """
        x:fp16 = Cast(x) to=10
        s = Relu(x:fp16)
        s:codes = QuantizeLinear(s, f16:0.5, i8:0)
        s:quantized = DequantizeLinear(s:codes, f16:0.5, i8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f16:0.00788116, i8:0)
        y:fp16 = Conv(s:quantized, w:quantized)
        y = Cast(y:fp16) to=1
        """,
        options={"per_channel": False},
        tolerance=FP16,
    ),
    Case(
        "what stays float",
        """
        [c1] s = Conv(x, w)
        r = Abs(s)
        [c2] a = Conv(r, v)
        t = Neg(a)
        [c3] b = Conv(t, v)
        g = GlobalAveragePool(b)
        [c4] y = Conv(g, w)
        """,
        {"x": HALF, "r": SIGNED, "g": SIGNED},
        (),
        """
        x:fp16 = Cast(x) to=10
        s = Conv(x:fp16, f16[2,2,1,1])
        r = Abs(s)
        a = Conv(r, f16[2,2,1,1])
        t = Neg(a)
        b = Conv(t, f16[2,2,1,1])
        g = GlobalAveragePool(b)
        y:fp16 = Conv(g, f16[2,2,1,1])
        y = Cast(y:fp16) to=1
        """,
        options={"float_nodes": ("c2",)},
        tolerance=FP16,
    ),
    Case(
        "a bus of segments, once each",
        """
        [c1] s = Conv(x, w)
        [c2] a = Conv(s, v)
        c = Concat<axis=1>(s, a)
        [c3] b = Conv(c, u)
        d = Concat<axis=1>(c, b)
        t = Neg(s)
        e = Concat<axis=1>(d, x, t)
        y = Abs(e)
        """,
        {"x": HALF, "s": SIGNED, "a": SIGNED, "c": SIGNED, "b": SIGNED, "d": SIGNED, "e": SIGNED},
        ("c2", "c3"),
        """
        x:fp16 = Cast(x) to=10
        s = Conv(x:fp16, f16[2,2,1,1])
        s:codes = QuantizeLinear(s, f16:0.5, i8:0)
        s:quantized = DequantizeLinear(s:codes, f16:0.5, i8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f16[2], i8[2]) axis=0
        a = Conv(s:quantized, v:quantized)
        a:codes = QuantizeLinear(a, f16:0.5, i8:0)
        a:quantized = DequantizeLinear(a:codes, f16:0.5, i8:0)
        c = Concat(s:quantized, a:quantized) axis=1
        c:codes = QuantizeLinear(c, f16:0.5, i8:0)
        c:quantized = DequantizeLinear(c:codes, f16:0.5, i8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f16[2], i8[2]) axis=0
        b = Conv(c:quantized, u:quantized)
        b:codes = QuantizeLinear(b, f16:0.5, i8:0)
        b:quantized = DequantizeLinear(b:codes, f16:0.5, i8:0)
        d = Concat(c, b:quantized) axis=1
        t = Neg(s)
        e = Concat(d, x:fp16, t) axis=1
        y:fp16 = Abs(e)
        y = Cast(y:fp16) to=1
        """,
        options={"quantize_bus": True},
        graph={"outputs": "float[1,10,H,W] y"},
        tolerance=FP16,
    ),
)
def test_what_is_written(case):
    case.check("tensorrt")


STEM = "[c1] s = Conv(x, w)  r = Abs(s)"


@pytest.mark.parametrize(
    ("body", "types", "graph"),
    [
        (f"{STEM}  [c2] y = Conv(r, v)", {"y": SIGNED}, {}),
        ("[c1] y = Conv(x, w)", {"x": SIGNED}, {}),
        (
            f"{STEM}  [c2] y = Conv(r, k)",
            {"r": SIGNED},
            {"inputs": "float[1,2,4,4] x, float[2,2,1,1] k"},
        ),
        (f"{STEM}  g = GlobalAveragePool(r)  [c2] y = Conv(g, v)", {"g": SIGNED}, {}),
    ],
    ids=["a value without a type", "the stem", "weights from outside", "a classifier"],
)
def test_convolutions_that_stay_fp16(body, types, graph):
    model = graph_of(body, **graph)
    before = outputs_of(model)
    assert write("tensorrt", model, types) == ()
    assert not any("Quantize" in line for line in lines(model))
    same(model, before, FP16)


def test_operators_of_other_domains_are_left_alone():
    model = graph_of(f"{STEM}  y = other.Conv(r, v)", shapes=False)
    assert write("tensorrt", model, {"r": SIGNED}) == ()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, 1.0),
        (np.nextafter(1.0, 2.0), 1.0 + 2.0**-10),  # rounded to nearest it would be 1
        (1.0 + 2.0**-11, 1.0 + 2.0**-10),
        (1.0 + 2.0**-10 - 2.0**-30, 1.0 + 2.0**-10),  # what is rounded up anyway is not raised again
        (0.0, 2.0**-20),
        (2.0**-20, 2.0**-20),
        (2.0**-20 + 2.0**-26, 2.0**-20 + 2.0**-24),
        (65504.0, 65504.0),
        (65504.1, np.inf),
        (1e30, np.inf),
    ],
)
def test_the_next_number_that_fp16_holds(number, expected):
    found = fp16_at_least(number)
    assert (found.dtype, float(found)) == (np.float32, expected)


def test_the_next_numbers_of_an_array():
    assert fp16_at_least([0.1, 0.5]).tolist() == [float(np.nextafter(np.float16(0.1), np.float16(1))), 0.5]


@pytest.mark.parametrize(
    ("zero_point", "steps"), [(0, 255), (100, 155), (127, 128), (128, 127), (129, 129), (200, 200), (255, 255)]
)
def test_symmetric_codes_reach_as_far_as_the_values_on_either_side(zero_point, steps):
    """Where a type is symmetric already nobody needs its code -128."""
    scale = symmetric_scale(QuantizedType(127.0, zero_point))
    assert (scale.dtype, scale) == (np.float32, steps)


def test_a_symmetric_scale_is_one_that_fp16_holds():
    assert symmetric_scale(QuantizedType(0.1, 128)) == fp16_at_least(0.1)
    assert symmetric_scale(QuantizedType(1e-9, 0)) == 2.0**-20


def test_weights_are_rounded_at_the_scale_that_fp16_holds():
    model = graph_of(f"{STEM}  [c2] y = Conv(r, v)")
    model.graph.initializers["v"].const_value = ir.tensor(np.float32([[1, 0.5], [1e-9, 0]]).reshape(2, 2, 1, 1))
    write("tensorrt", model, {"r": SIGNED})
    scale = float(np.float16(1 / 127))
    scale = scale if scale >= 1 / 127 else float(np.nextafter(np.float16(1 / 127), np.float16(1)))
    assert constant_of(model, "v.scale") == [scale, 2.0**-20]
    assert constant_of(model, "v.codes") == [[[[round(1 / scale)]], [[round(0.5 / scale)]]], [[[0]], [[0]]]]
    assert constant_of(model, "v.zero_point") == [0, 0]


def test_a_norm_of_tiny_variance_survives_fp16():
    """FP16 would make the variance 0, and the scale infinite."""
    model = graph_of("n = BatchNormalization<epsilon=0.0>(x, gamma, beta, mean, tiny)  y = Relu(n)")
    before = outputs_of(model)
    write("tensorrt", model, {})
    numbers = {name: constant_of(model, f"n.{name}") for name in ("scale", "shift", "mean", "variance")}
    assert numbers == {"scale": [2.0**14, -(2.0**13)], "shift": [1, 2.0**13], "mean": [0, 0], "variance": [1, 1]}
    same(model, before, 1e-3)


def test_a_norm_that_is_not_constant_stays_as_it_is():
    body, inputs = "y = BatchNormalization(x, k, beta, mean, variance)", "float[1,2,4,4] x, float[2] k"
    model = graph_of(body, inputs)
    before = outputs_of(model)
    write("tensorrt", model, {})
    assert any("BatchNormalization(x:fp16, k:fp16" in line for line in lines(model))
    same(model, before, FP16)


@pytest.mark.parametrize(("given", "written"), [(17, 19), (19, 19), (20, 20)])
def test_operator_sets_are_lifted_to_the_first_with_fp16_scales(given, written):
    model = graph_of("s = Relu(x)  y = Conv(s, w)", opset=given)
    write("tensorrt", model, {"s": SIGNED})
    assert model.opset_imports[""] == written


def test_a_simulation_has_the_same_pairs_in_float32():
    body, types = f"{STEM}  [c2] y = Conv(r, v)", {"r": SIGNED}
    model = graph_of(body)
    recipes.get("tensorrt")().simulate(model, types, RecipeOptions())
    assert lines(model) == [
        "s = Conv(x, f32[2,2,1,1])",
        "r = Abs(s)",
        "r:codes = QuantizeLinear(r, f32:0.5, i8:0)",
        "r:quantized = DequantizeLinear(r:codes, f32:0.5, i8:0)",
        "v:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0",
        "y = Conv(r:quantized, v:quantized)",
    ]


def test_no_passes_are_needed_first_and_buses_are_not_stored():
    assert (recipes.get("tensorrt").passes, recipes.get("tensorrt").stores_bus) == ((), False)

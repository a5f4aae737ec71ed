"""The openvino recipe on small graphs: which nodes it writes, and that they compute the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.quantization.recipes.recipe import RecipeOptions, recipes
from densenet_deploy.quantization.scales import QuantizedType
from densenet_deploy.runtime.runner import RunnerOptions, open_runner
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


@each(
    Case(
        "a convolution with a bias",
        """
        [c] y = Conv(x, w, bias)
        """,
        {"x": HALF},
        ("c",),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, u8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        y = Conv(x:quantized, w:quantized, f32[2])
        """,
    ),
    Case(
        "one that reads 7-bit weights of one scale",
        """
        [c] y = Conv(x, w)
        """,
        {"x": HALF},
        ("c",),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, u8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32:0.015873, i8:0) axis=0
        y = Conv(x:quantized, w:quantized)
        """,
        options={"weight_bits": 7, "per_channel": False},
    ),
    Case(
        "a block: segments once, at one scale, and each ReLU",
        """
        [c1] a = Conv(x, w, bias)
        r = Relu(a)
        [c2] b = Conv<pads=[1,1,1,1]>(r, wide)
        c = Concat<axis=1>(a, b)
        s = Relu(c)
        [c3] y = Conv(s, u)
        """,
        {"x": HALF, "r": HALF, "a": SIGNED, "b": SIGNED, "c": SIGNED, "s": HALF},
        ("c1", "c2", "c3"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, u8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        a = Conv(x:quantized, w:quantized, f32[2])
        a:codes = QuantizeLinear(a, f32:0.5, i8:0)
        a:quantized = DequantizeLinear(a:codes, f32:0.5, i8:0)
        r = Relu(a:quantized)
        r:codes = QuantizeLinear(r, f32:0.5, u8:0)
        r:quantized = DequantizeLinear(r:codes, f32:0.5, u8:0)
        wide:quantized = DequantizeLinear(i8[2,2,3,3], f32[2], i8[2]) axis=0
        b = Conv(r:quantized, wide:quantized) pads=(1,1,1,1)
        b:codes = QuantizeLinear(b, f32:0.5, i8:0)
        b:quantized = DequantizeLinear(b:codes, f32:0.5, i8:0)
        c = Concat(a:quantized, b:quantized) axis=1
        s = Relu(c)
        s:codes = QuantizeLinear(s, f32:0.5, u8:0)
        s:quantized = DequantizeLinear(s:codes, f32:0.5, u8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        y = Conv(s:quantized, u:quantized)
        """,
    ),
    Case(
        "two convolutions, sharing weights, that read one concat",
        """
        [c1] a = Conv(x, w)
        [c2] b = Conv(a, v)
        c = Concat<axis=1>(a, b)
        [c3] d = Conv(c, u)
        [c4] e = Conv(c, u)
        y = Add(d, e)
        """,
        {"x": HALF, "a": SIGNED, "b": SIGNED, "c": SIGNED},
        ("c1", "c2", "c3", "c4"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, u8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        a = Conv(x:quantized, w:quantized)
        a:codes = QuantizeLinear(a, f32:0.5, i8:0)
        a:quantized = DequantizeLinear(a:codes, f32:0.5, i8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        b = Conv(a:quantized, v:quantized)
        b:codes = QuantizeLinear(b, f32:0.5, i8:0)
        c:codes = Concat(a:codes, b:codes) axis=1
        c:quantized = DequantizeLinear(c:codes, f32:0.5, i8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        d = Conv(c:quantized, u:quantized)
        u:quantized_ = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        e = Conv(c:quantized, u:quantized_)
        y = Add(d, e)
        """,
    ),
    Case(
        "clips of a concat of a concat",
        """
        [c1] a = Conv(x, w)
        b = Concat<axis=1>(a, x)
        [c2] c = Conv(b, u)
        d = Concat<axis=1>(c, a)
        [m] m = Max(d, zero)
        [n] n = Min(m, zero)
        [c3] y = Conv(n, u)
        """,
        {"x": SIGNED, "a": SIGNED, "b": SIGNED, "c": SIGNED, "d": SIGNED, "m": SIGNED, "n": SIGNED},
        ("c1", "c2", "c3"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, i8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, i8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        a = Conv(x:quantized, w:quantized)
        a:codes = QuantizeLinear(a, f32:0.5, i8:0)
        b:codes = Concat(a:codes, x:codes) axis=1
        b:quantized = DequantizeLinear(b:codes, f32:0.5, i8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        c = Conv(b:quantized, u:quantized)
        c:codes = QuantizeLinear(c, f32:0.5, i8:0)
        d:codes = Concat(c:codes, a:codes) axis=1
        m:codes = Max(d:codes, i8[1,1,1])
        n:codes = Min(m:codes, i8[1,1,1])
        n:quantized = DequantizeLinear(n:codes, f32:0.5, i8:0)
        u:quantized_ = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        y = Conv(n:quantized, u:quantized_)
        """,
    ),
    Case(
        "a pool alone reads a convolution",
        """
        [c1] a = Conv(x, w)
        p = MaxPool<kernel_shape=[2,2]>(a)
        [c2] y = Conv(p, v)
        """,
        {"x": HALF, "a": SIGNED, "p": SIGNED},
        ("c1", "c2"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, u8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, u8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        a = Conv(x:quantized, w:quantized)
        a:codes = QuantizeLinear(a, f32:0.5, i8:0)
        p:codes = MaxPool(a:codes) kernel_shape=(2,2)
        p:quantized = DequantizeLinear(p:codes, f32:0.5, i8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        y = Conv(p:quantized, v:quantized)
        """,
    ),
    Case(
        "a pool of the input",
        """
        p = MaxPool<kernel_shape=[2,2], strides=[2,1]>(x)
        [c] y = Conv(p, v)
        """,
        {"x": FINE, "p": FINE},
        ("c",),
        """
        x:codes = QuantizeLinear(x, f32:0.25, u8:0)
        p:codes = MaxPool(x:codes) kernel_shape=(2,2) strides=(2,1)
        p:quantized = DequantizeLinear(p:codes, f32:0.25, u8:0)
        v:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        y = Conv(p:quantized, v:quantized)
        """,
    ),
    Case(
        "a pool of a concat at one scale",
        """
        [c1] a = Conv(x, w)
        c = Concat<axis=1>(a, x)
        p = MaxPool<kernel_shape=[2,2]>(c)
        [c2] y = Conv(p, u)
        """,
        {"x": SIGNED, "a": SIGNED, "c": SIGNED, "p": SIGNED},
        ("c1", "c2"),
        """
        x:codes = QuantizeLinear(x, f32:0.5, i8:0)
        x:quantized = DequantizeLinear(x:codes, f32:0.5, i8:0)
        w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
        a = Conv(x:quantized, w:quantized)
        a:codes = QuantizeLinear(a, f32:0.5, i8:0)
        c:codes = Concat(a:codes, x:codes) axis=1
        p:codes = MaxPool(c:codes) kernel_shape=(2,2)
        p:quantized = DequantizeLinear(p:codes, f32:0.5, i8:0)
        u:quantized = DequantizeLinear(i8[2,4,1,1], f32[2], i8[2]) axis=0
        y = Conv(p:quantized, u:quantized)
        """,
    ),
)
def test_what_is_written(case):
    case.check("openvino")


CONV = "[c] a = Conv(x, w)"
CLIP = f"{CONV}  [m] m = Max(a, low)"
POOL = f"{CONV}  p = MaxPool<kernel_shape=[1,1]>(a)"
ALL = {"x": HALF, "a": SIGNED, "m": SIGNED, "p": SIGNED}
WITH_M = {"outputs": "float[1,2,4,4] y, float[1,2,4,4] m"}
WITH_P = {"outputs": "float[1,2,4,4] y, float[1,2,4,4] p"}


@pytest.mark.parametrize(
    ("body", "types", "options", "graph", "left"),
    [
        ("[c] y = Conv(x, w)", {"x": HALF}, {"float_nodes": ("c",)}, {}, "y = Conv(x, f32[2,2,1,1])"),
        ("[c] y = Conv(x, w)", {"y": HALF}, {}, {}, "y = Conv(x, f32[2,2,1,1])"),
        (
            "[c] y = Conv(x, k)",
            {"x": HALF},
            {},
            {"inputs": "float[1,2,4,4] x, float[2,2,1,1] k"},
            "y = Conv(x, k)",
        ),
        (f"{CLIP}  y = Conv(m, v)", ALL, {"float_nodes": ("m",)}, {}, "m = Max(a, f32[2,1,1])"),
        (f"{CLIP}  y = Conv(m, v)", ALL, {}, WITH_M, "m = Max(a, f32[2,1,1])"),
        (f"{CLIP}  y = Conv(m, v)", ALL | {"m": FINE}, {}, {}, "m = Max(a, f32[2,1,1])"),
        (f"{CLIP}  y = Neg(m)", {"x": HALF}, {}, {}, "m = Max(a, f32[2,1,1])"),
        (f"{CLIP}  y = Neg(m)", {"x": HALF, "m": SIGNED}, {}, {}, "m = Max(a, f32[2,1,1])"),
        (
            f"{CONV}  m = Min(a, x)  y = Conv(m, v)",
            ALL,
            {},
            {},
            "m = Min(a, x:quantized)",
        ),
        (f"{POOL}  q = Neg(a)  r = Conv(p, v)  y = Add(q, r)", ALL, {}, {}, "p = MaxPool(a) kernel_shape=(1,1)"),
        (f"{POOL}  y = Conv(p, v)", ALL, {}, WITH_P, "p = MaxPool(a) kernel_shape=(1,1)"),
        (f"{POOL}  y = Neg(p)", {"x": HALF, "a": SIGNED}, {}, {}, "p = MaxPool(a) kernel_shape=(1,1)"),
        (f"{POOL}  y = Conv(p, v)", {"x": HALF, "p": SIGNED}, {}, {}, "p = MaxPool(a) kernel_shape=(1,1)"),
        (
            f"{CONV}  c = Concat<axis=1>(a, x)  p = MaxPool<kernel_shape=[1,1]>(c)  y = Conv(p, u)",
            {"x": SIGNED, "a": SIGNED, "c": SIGNED, "p": SHIFTED},
            {},
            {},
            "p = MaxPool(c) kernel_shape=(1,1)",
        ),
        (
            f"{POOL}  q = MaxPool<kernel_shape=[1,1]>(p)  y = Conv(q, v)",
            ALL | {"q": SHIFTED},
            {},
            {},
            "q = MaxPool(p:quantized) kernel_shape=(1,1)",
        ),
        (
            f"{CLIP}  p = MaxPool<kernel_shape=[1,1]>(m)  y = Conv(p, v)",
            ALL | {"p": SHIFTED},
            {},
            {},
            "p = MaxPool(m:quantized) kernel_shape=(1,1)",
        ),
        (
            f"{CONV}  m = Min(a, high)  p = MaxPool<kernel_shape=[1,1]>(m)  y = Conv(p, v)",
            ALL | {"p": SHIFTED},
            {},
            {},
            "p = MaxPool(m:quantized) kernel_shape=(1,1)",
        ),
        (
            f"{CONV}  c = Concat<axis=1>(a, x)  y = Conv(c, u)",
            {"x": HALF, "c": SIGNED},
            {},
            {},
            "c = Concat(a, x:quantized) axis=1",
        ),
    ],
    ids=[
        "a named convolution",
        "a convolution of a value without a type",
        "weights from outside",
        "a named clip",
        "a clip that leaves the graph",
        "a clip with a type of its own",
        "a clip without types",
        "a clip of a value without a type",
        "a clip without a constant",
        "a pool beside another reader",
        "a pool that leaves the graph",
        "a pool without a type",
        "a pool of a value without a type",
        "a pool of a concat at another scale",
        "a pool of a pool at another scale",
        "a pool of a maximum at another scale",
        "a pool of a minimum at another scale",
        "a concat of a value without a type",
    ],
)
def test_what_stays_float(body, types, options, graph, left):
    model = graph_of(body, **graph)
    before = outputs_of(model)
    write("openvino", model, types, **options)
    assert left in lines(model)
    same(model, before)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("y = other.Conv(x, w)", "y = Conv(x, f32[2,2,1,1])"),
        (f"{CONV}  y = other.Max(a, low)", "y = Max(a, f32[2,1,1])"),
        (f"{CONV}  p = other.MaxPool(a)  y = Neg(p)", "p = MaxPool(a)"),
        ("c = other.Concat(x, x)  y = Neg(c)", "c = Concat(x, x)"),
        ("y = Constant<value = float {1.0}>()", "y = Constant() value="),
    ],
)
def test_operators_of_other_domains_and_without_inputs_are_left_alone(body, kept):
    model = graph_of(body, shapes=False)
    types = (
        {"x": SIGNED, "a": SIGNED, "p": SIGNED, "y": SIGNED, "c": SIGNED} if "Conv(x, w)" not in body else {"x": HALF}
    )
    write("openvino", model, types)
    assert any(line.startswith(kept) for line in lines(model))


def test_numbers_are_stored_as_their_types_say():
    model = graph_of("a = Conv(x, w)  b = Max(a, low)  c = Min(b, high)  y = Conv(c, v)")
    low = model.graph.initializers["low"]
    write("openvino", model, {"x": SHIFTED, "a": SIGNED, "b": SIGNED, "c": SIGNED}, weight_bits=7)
    assert (constant_of(model, "x.scale"), constant_of(model, "x.zero_point")) == (0.25, 100)
    assert (constant_of(model, "a.scale"), constant_of(model, "a.zero_point")) == (0.5, 0)
    assert constant_of(model, "b.bound") == [[[0]], [[4]]]
    assert constant_of(model, "c.bound") == [[[6]], [[2]]]
    assert constant_of(model, "w.codes") == [[[[63]], [[63]]], [[[-63]], [[63]]]]
    assert not low.uses()


POOL = "AveragePool<kernel_shape=[2,2],strides=[2,2]>"


@pytest.mark.parametrize(
    ("body", "types", "scale"),
    [
        (f"p = {POOL}(x)  y = Conv(p, w)", {"x": HALF, "p": HALF}, 0.5 * (1 + 2**-12)),
        (f"p = {POOL}(x)  [c] y = Conv(p, w)", {"x": SIGNED, "p": SIGNED}, 0.5 * (1 + 2**-12)),
        (f"p = {POOL}(x)  y = Conv(p, w)", {"x": FINE, "p": HALF}, 0.5),
        (f"p = {POOL}(x)  y = Conv(p, w)", {"p": HALF}, 0.5),
        (f"p = {POOL}(x)  c = Conv(p, w)  y = Concat<axis=1>(p, c)", {"x": HALF, "p": HALF, "c": HALF}, 0.5),
        ("p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)  y = Conv(p, w)", {"x": HALF, "p": HALF}, 0.5),
    ],
)
def test_averages_of_quantized_values_that_convolutions_read_have_a_scale_without_ties(body, types, scale):
    model = graph_of(body)
    write("openvino", model, types)
    assert constant_of(model, "p.scale") == scale


def test_both_backends_round_averages_alike():
    """At one scale, float32 rounding would decide a fourth of all averages; at 1/255 OpenVINO decides otherwise."""
    unit = QuantizedType(1 / 255, 0)
    model = graph_of(f"p = {POOL}(x)  y = Conv(p, w)", "float[1,2,64,64] x", "float[1,2,32,32] y")
    write("openvino", model, {"x": unit, "p": unit}, weight_bits=7)  # 8 may saturate in 16 bits
    data = ir.to_proto(model)
    del data.graph.value_info[:]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64)).astype(np.float32) / np.float32(255)
    answers = []
    for backend in ("onnxruntime", "openvino"):
        with open_runner(data.SerializeToString(), backend, "cpu", RunnerOptions(check_values=False)) as run:
            answers.append(run(pixels)["y"])
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-4)  # a step is 4e-3


def test_a_bound_beyond_all_quantized_values_is_held_by_the_convolution_after_it():
    narrow = QuantizedType(1 / 64, 128)  # up to 127/64
    model = graph_of("a = Conv(x, w)  m = Max(a, low)  y = Conv(m, v, bias)")
    write("openvino", model, {"x": HALF, "a": narrow, "m": narrow})
    assert constant_of(model, "m.bound") == [[[0]], [[127]]]
    assert constant_of(model, "v.held.bias") == [1 + 1 / 64, -2 - 1 / 64]


def test_a_simulation_is_the_file_itself():
    body, types = "[c] y = Conv(x, w)", {"x": HALF}
    file, simulated = graph_of(body), graph_of(body)
    write("openvino", file, types)
    recipes.get("openvino")().simulate(simulated, types, RecipeOptions())
    assert lines(simulated) == lines(file)


def test_norms_become_clips_first_and_buses_are_stored():
    assert (recipes.get("openvino").passes, recipes.get("openvino").stores_bus) == (("norm-to-clip",), True)

"""FP16 and BF16: numbers are rounded to nearest, what does not fit stays in FP32, and Casts are few."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from densenet_deploy.errors import ModelFileError, UnknownNameError
from densenet_deploy.graph.reduced_precision import (
    lift_opset,
    reduce_precision,
    rounded,
    to_fp16_in_place,
)
from tests.graph.reduced_models import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    casts,
    evaluate,
    graph_of,
    node_named,
    results_of,
    run_all,
    types_of,
    useless_casts,
)

to_fp16 = partial(reduce_precision, precision="fp16")
to_bf16 = partial(reduce_precision, precision="bf16")
PRECISIONS = ("fp16", "bf16")
TYPES = {"fp16": FLOAT16, "bf16": BFLOAT16}

X = np.full((1, 1, 2, 2), 3, np.float32)
ENDS = {"inputs": "float[N,1,2,2] x", "outputs": "float[N,1,2,2] y"}
HEADER = '<ir_version: 10, opset_import: ["" : 22]>'
BLOCK_ENDS = {"inputs": "float[2,4,6,6] x", "outputs": "float[2,8,3,3] y"}
BLOCK = """
[conv] a = Conv<pads: ints = [1, 1, 1, 1]>(x, w, b)
[relu] r = Relu(a)
[concat] c = Concat<axis: int = 1>(x, r)
[norm] n = Mul(c, scale)
[pool] y = MaxPool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>(n)
"""

# a = 1.2e5 is read twice; what follows scales it back to 12 and 0, which fit.
LOUD = """
[conv] a = Conv(x, w)
[relu] b = Relu(a)
[neg] c = Neg(a)
[small_b] d = Mul(b, tiny)
[small_c] e = Mul(c, tiny)
[sum] y = Sub(d, e)
"""
LOUD_RANGES = {"x": 3.0, "a": 1.2e5, "b": 1.2e5, "c": 1.2e5, "d": 12.0, "e": 12.0, "y": 24.0}
LOUD_NODES = ("conv", "relu", "neg", "small_b", "small_c")


def _loud() -> onnx.ModelProto:
    return graph_of(LOUD, {"w": [[[[4e4]]]], "tiny": 1e-4}, **ENDS)


def _constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "scale": (8, 1, 1)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _block(header: str = HEADER) -> onnx.ModelProto:
    return graph_of(BLOCK, _constants(), header=header, **BLOCK_ENDS)


def _images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)


# -- both types


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tensor_read_in_two_types_is_cast_once(precision):
    """The sum and the product read the reduced output of the Relu as FP32; the Neg reads it as it is."""
    body = "[relu] a = Relu(x)  [neg] n = Neg(a)  [add] s = Add(a, a)  [mul] p = Mul(a, s)  [last] y = Sub(p, n)"
    model = graph_of(body, {}, "float[3] x", "float[3] y", HEADER)
    reduced = reduce_precision(model, precision, float_nodes=["add", "mul"])
    p = precision
    assert casts(reduced.model) == [("x", f"x:{p}"), ("a", "a:fp32"), ("p", f"p:{p}"), (f"y:{p}", "y")]
    assert list(node_named(reduced.model, "neg").input) == ["a"]
    (found,) = evaluate(reduced.model, {"x": np.float32([-1, 2, 3])}).values()
    np.testing.assert_array_equal(found, np.float32([0, 10, 21]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_read_in_two_types_is_stored_in_both(precision):
    model = graph_of("[one] a = Mul(x, w)  [two] y = Mul(a, w)", {"w": 1.0001}, "float[1] x", "float[1] y", HEADER)
    reduced = reduce_precision(model, precision, float_nodes=["two"]).model
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32).item() for t in reduced.graph.initializer}
    assert stored == {"w": np.float32(1.0001), f"w:{precision}": 1.0}
    assert [node_named(reduced, name).input[1] for name in ("one", "two")] == [f"w:{precision}", "w"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_a_caller_may_replace_stays_float32(precision):
    model = graph_of("y = Mul(x, w)", {"w": 1.001}, "float[1] x, float w", "float[1] y", HEADER)
    reduced = reduce_precision(model, precision).model
    assert types_of(reduced)["w"] == FLOAT
    assert ("w", f"w:{precision}") in casts(reduced)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_output_that_is_read_inside_too_is_cast_at_the_end(precision):
    model = graph_of("a = Relu(x)  y = Neg(a)", {}, "float[2] x", "float[2] a, float[2] y", HEADER)
    reduced = reduce_precision(model, precision)
    p = precision
    assert casts(reduced.model) == [("x", f"x:{p}"), (f"a:{p}", "a"), (f"y:{p}", "y")]
    found = evaluate(reduced.model, {"x": np.float32([2, -2])})
    np.testing.assert_array_equal([found["a"], found["y"]], [[2, 0], [-2, 0]])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_operators_of_other_domains_stay_in_fp32(precision):
    header = '<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>'
    model = graph_of("a = Relu(x)  [own] y = com.microsoft.Gelu(a)", {}, "float[2] x", "float[2] y", header)
    reduced = reduce_precision(model, precision)
    assert reduced.reasons == {"own": "Gelu is not an operator of ONNX itself"}
    types = types_of(reduced.model)
    assert (types[node_named(reduced.model, "own").input[0]], types["a"]) == (FLOAT, TYPES[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_that_attributes_set_stay(precision):
    body = "[cast] a = Cast<to: int = 1>(k)  y = Mul(a, x)"
    model = graph_of(body, {}, "int32[2] k, float[2] x", "float[2] y", HEADER)
    reduced = reduce_precision(model, precision)
    assert reduced.float_nodes == ("cast",)
    (found,) = evaluate(reduced.model, {"k": np.int32([2, 3]), "x": np.float32([4, 5])}).values()
    np.testing.assert_array_equal(found, [8, 15])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_node_with_graphs_of_its_own_reads_float32(precision):
    body = """
    a = Relu(x)
    [if] b = If(c) <then_branch = yes () => (float[2] t) { t = Mul(a, w) },
                    else_branch = no () => (float[2] e) { e = Neg(a) }>
    y = Mul(b, w)
    """
    model = graph_of(body, {"w": 1.0001}, "bool c, float[2] x", "float[2] y", HEADER)
    reduced = reduce_precision(model, precision)
    assert reduced.float_nodes == ("if",)
    (found,) = evaluate(reduced.model, {"c": np.array(True), "x": np.float32([2, 3])}).values()
    np.testing.assert_array_equal(found, [2, 3])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("opset", [13, 17, 20, 22, 23])
def test_metadata_and_the_given_model_stay_and_bf16_lifts_the_operator_set(opset, precision):
    model = _block(f'<ir_version: 8, opset_import: ["" : {opset}]>')
    model.metadata_props.add(key="densenet_deploy.labels", value="cat\ndog")
    before = model.SerializeToString(deterministic=True)
    reduced = reduce_precision(model, precision, float_nodes=["relu"]).model
    expected = max(opset, 22) if precision == "bf16" else opset
    assert [(entry.domain, entry.version) for entry in reduced.opset_import] == [("", expected)]
    assert reduced.ir_version == (10 if opset < 22 and precision == "bf16" else 8)
    assert reduced.metadata_props == model.metadata_props
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_unknown_node_is_refused(precision):
    with pytest.raises(UnknownNameError) as caught:
        reduce_precision(_block(), precision, float_nodes=["conf"])
    assert caught.value.subject == "conf"
    assert "'conv'" in str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "subject"), [("g", "g"), ("", "graph")])
def test_a_model_with_a_16_bit_weight_is_refused(precision, name, subject):
    """Whatever its other weights are."""
    model = reduce_precision(_block(), precision, float_nodes=["norm"]).model
    assert len({tensor.data_type for tensor in model.graph.initializer}) == 2
    model.graph.name = name
    with pytest.raises(ModelFileError) as caught:
        reduce_precision(model, precision)
    assert caught.value.subject == subject


def test_an_unknown_precision_is_refused():
    with pytest.raises(UnknownNameError) as caught:
        reduce_precision(_block(), "fp61")
    assert (caught.value.subject, caught.value.why) == ("fp61", "unknown precision")


# -- FP16: what does not fit


def test_an_activation_that_would_overflow_stays_finite_because_its_nodes_stay_in_fp32():
    reduced = to_fp16(_loud(), ranges=LOUD_RANGES)
    assert reduced.float_nodes == LOUD_NODES
    assert "120000" in reduced.reasons["conv"]
    assert {kind for name, kind in types_of(reduced.model).items() if name in "abc"} == {FLOAT}
    # d is made in FP32 for b and read in FP16 by the sum, through one Cast
    assert types_of(reduced.model)[node_named(reduced.model, "sum").input[0]] == FLOAT16
    for results in results_of(reduced, {"x": X}):
        np.testing.assert_allclose(results["y"], np.full_like(X, 24), rtol=1e-3)
    assert useless_casts(reduced.model) == []


def test_without_ranges_the_same_activation_overflows():
    """Where each tensor is rounded to FP16; ONNX Runtime on an x86 CPU keeps it in FP32 and does not show it."""
    reduced = to_fp16(_loud())
    assert reduced.float_nodes == ()
    assert not np.isfinite(evaluate(reduced.model, {"x": X})["y"]).any()


@pytest.mark.parametrize(("reach", "stays"), [(32752, False), (32752.01, True), (np.nan, True)])
def test_a_range_has_to_leave_a_margin(reach, stays):
    assert to_fp16(_loud(), ranges={"y": reach}).float_nodes == (("sum",) if stays else ())


def test_an_output_that_would_overflow_is_not_cast():
    model = graph_of("[relu] a = Relu(x)  [mul] y = Mul(a, w)", {"w": 6e4}, **ENDS)
    reduced = to_fp16(model, ranges={"a": 3.0, "y": 1.8e5})
    assert reduced.float_nodes == ("mul",)
    assert node_named(reduced.model, "mul").output[0] == "y"
    for results in results_of(reduced, {"x": X}):
        np.testing.assert_array_equal(results["y"], np.full_like(X, 1.8e5))


def test_an_input_that_would_overflow_is_not_cast():
    model = graph_of("[mul] a = Mul(x, w)  [relu] y = Relu(a)", {"w": 2.0**-14}, **ENDS)
    reduced = to_fp16(model, ranges={"x": 2.0**17})
    assert node_named(reduced.model, "mul").input[0] == "x"
    for results in results_of(reduced, {"x": np.full_like(X, 2.0**17)}):
        np.testing.assert_array_equal(results["y"], np.full_like(X, 8))


def test_a_weight_that_would_overflow_keeps_its_node_in_fp32():
    model = graph_of("[mul] a = Mul(x, w)  [back] y = Mul(a, v)", {"w": 7e4, "v": 65504e-10}, **ENDS)
    reduced = to_fp16(model)
    assert reduced.float_nodes == ("mul",)
    assert "70000" in reduced.reasons["mul"]
    assert types_of(reduced.model)["w"] == FLOAT
    assert types_of(reduced.model)["v"] == FLOAT16


@pytest.mark.parametrize("weight", [65504.0, -65504.0, np.inf, np.nan])
def test_a_weight_that_fp16_holds_is_converted_as_it_is(weight):
    reduced = to_fp16(graph_of("y = Mul(x, w)", {"w": weight}, **ENDS))
    assert reduced.float_nodes == ()
    (stored,) = (onnx.numpy_helper.to_array(tensor) for tensor in reduced.model.graph.initializer)
    np.testing.assert_array_equal(stored, np.float16(weight))


# Ties go to the even number: the spacing above 1 is 2⁻¹⁰, and that of the smallest numbers 2⁻²⁴.
FP16_ROUNDED = {
    1 + 2**-11: 1,
    1 + 3 * 2**-11: 1 + 2**-9,
    -(1 + 2**-11 + 2**-20): -(1 + 2**-10),
    65504.0: 65504,
    1.5 * 2**-24: 2**-23,
    2.5 * 2**-24: 2**-23,
    2.0**-24: 2**-24,
    2.0**-25: 2**-24,
    -(2.0**-25): -(2**-24),
    1e-30: 2**-24,
    -1e-30: -(2**-24),
    0.0: 0,
}


def test_weights_are_rounded_to_the_nearest_fp16_number_and_none_to_zero():
    model = graph_of("y = Mul(x, w)", {"w": list(FP16_ROUNDED)}, "float[12] x", "float[12] y")
    (tensor,) = to_fp16(model).model.graph.initializer
    stored = onnx.numpy_helper.to_array(tensor)
    assert (stored.dtype, stored.tolist()) == (np.float16, list(FP16_ROUNDED.values()))


def test_the_sign_of_zero_stays():
    model = graph_of("y = Mul(x, w)", {"w": [0.0, -0.0]}, "float[2] x", "float[2] y")
    (tensor,) = to_fp16(model).model.graph.initializer
    assert np.signbit(onnx.numpy_helper.to_array(tensor)).tolist() == [False, True]


def test_weights_too_small_for_fp16_are_counted_once_where_a_node_in_fp16_reads_them():
    weights = {"w": [1e-9, -1e-9, 0, 2.0**-24, 1], "v": [1e-9] * 5}
    body = "a = Mul(x, w)  b = Add(a, w)  [float] y = Mul(b, v)"
    model = graph_of(body, weights, inputs="float[5] x", outputs="float[5] y", header=HEADER)
    (note,) = to_fp16(model, float_nodes=["float"]).notes
    assert note.startswith("2 of 5 weights")
    assert to_bf16(model).notes == ()
    assert to_fp16(_loud(), ranges=LOUD_RANGES).notes == ()


@pytest.mark.parametrize("constant", ["value_float: float = 7e4", "value = float[3] {1, -7e4, 2}"])
def test_constants_of_nodes_are_checked(constant):
    model = graph_of(f"[big] w = Constant<{constant}>()  [mul] y = Mul(x, w)", {}, "float[3] x", "float[3] y")
    assert to_fp16(model).reasons == {"mul": "its weight w holds 70000, beyond 65504, the largest FP16 number"}
    with pytest.raises(ModelFileError) as caught:
        to_fp16_in_place(ir.from_proto(model))
    assert caught.value.subject == "w"


@pytest.mark.parametrize("constant", ["value_float: float = 7.0", "value = float[0] {}"])
@pytest.mark.parametrize("in_place", [False, True])
def test_constants_of_nodes_are_converted(constant, in_place):
    body = f"w = Constant<{constant}>()  v = Unsqueeze(w, axes)  y = Mul(x, v)"
    proto = onnx.parser.parse_model(f"{HEADER} g (float[1,N] x) => (float[1,N] y) <int64[1] axes = {{0}}> {{ {body} }}")
    if in_place:
        model = ir.from_proto(proto)
        to_fp16_in_place(model)
        reduced = ir.to_proto(model)
    else:
        reduced = to_fp16(proto).model
    assert types_of(reduced)["w"] == FLOAT16
    assert [node.op_type for node in reduced.graph.node] == ["Cast", "Unsqueeze", "Mul", "Cast"]


KEPT = {
    "CumSum": ("CumSum(x, one)", ""),
    "Max": ("Max(x, w)", ""),
    "Min": ("Min(x, w)", ""),
    "RandomUniformLike": ("RandomUniformLike(x)", ""),
    "TopK": ("TopK(x, ones)", ", k"),
    "RoiAlign": ("RoiAlign(images, rois, zeros)", ""),
}


@pytest.mark.parametrize(("call", "more"), KEPT.values(), ids=KEPT)
def test_an_operator_that_onnx_runtime_keeps_in_fp32_stays_there(call, more):
    constants = "int64 one = {0}, int64[1] ones = {1}, int64[1] zeros = {0}, float[3] w = {1, 2, 3}"
    constants += ", float[1,4] rois = {0, 0, 1, 1}"
    inputs, output = "float[3] x, float[1,1,4,4] images", "float[A,B,C,D] y" if "Roi" in call else "float[A] y"
    text = f"{HEADER} g ({inputs}) => ({output}) <{constants}> {{ [kept] y{more} = {call} }}"
    name = call.partition("(")[0]
    reason = f"{name} stays in FP32, as in ONNX Runtime's own converter"
    assert to_fp16(onnx.parser.parse_model(text)).reasons == {"kept": reason}
    if name in ("Max", "Min", "CumSum"):
        assert to_bf16(onnx.parser.parse_model(text)).float_nodes == ()


def test_such_a_name_in_another_domain_is_no_such_operator():
    model = graph_of("[own] y = other.Max(x, w)", {"w": 1}, **ENDS)
    assert to_fp16(model).reasons == {"own": "Max is not an operator of ONNX itself"}


def test_an_operator_without_an_fp16_form_stays_in_fp32():
    body = "[quantize] q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)"
    model = graph_of(body, {}, header='<ir_version: 10, opset_import: ["" : 20]>', **ENDS)
    assert to_fp16(model).reasons == {"quantize": "DynamicQuantizeLinear has no FP16 form in operator set 20"}


def test_an_operator_with_an_argument_that_is_float32_alone_stays_in_fp32():
    model = graph_of(
        "[resize] y = Resize(x, , scales)", {"scales": [1, 1, 2, 2]}, "float[1,1,2,2] x", "float[1,1,4,4] y"
    )
    assert to_fp16(model).float_nodes == ("resize",)
    old = '<ir_version: 4, opset_import: ["" : 9]>'
    model = graph_of("[up] y = Upsample(x, s)", {"s": [1, 1, 2, 2]}, "float[1,1,2,2] x", "float[1,1,4,4] y", old)
    assert to_fp16(model).float_nodes == ("up",)


def test_an_absent_argument_is_no_tensor_and_a_weight_needs_no_range():
    model = graph_of("y = Clip(x, , w)", {"w": 2}, **ENDS)
    reduced = to_fp16(model, ranges={"w": 1e9})
    assert reduced.float_nodes == ()
    np.testing.assert_array_equal(evaluate(reduced.model, {"x": X})["y"], np.full_like(X, 2))


def test_an_empty_weight_fits():
    model = graph_of("y = Concat<axis: int = 0>(x, w)", {"w": []}, "float[2] x", "float[2] y")
    assert to_fp16(model).float_nodes == ()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nodes_that_handle_no_float32_are_as_they_were(precision):
    header = '<ir_version: 10, opset_import: ["" : 22, "other" : 1]>'
    body = "k = Add(i, i)  j = other.Odd(k, )  l = Abs(k)  y = Reshape(x, l)"
    text = f"{header} g (float[N] x, int64[2] i) => (float[A,B] y) {{ {body} }}"
    reduced = reduce_precision(onnx.parser.parse_model(text), precision)
    assert reduced.float_nodes == ()
    assert casts(reduced.model) == [("x", f"x:{precision}"), (f"y:{precision}", "y")]


def test_only_weights_that_a_node_in_fp16_reads_are_converted():
    constants = (
        "int64[1] all = {-1}, float[2] w = {1, 2}, float[2] v = {3, 4}, float[2] unread = {5, 6}, float[2] out = {7, 8}"
    )
    body = "[one] a = Mul(x, w)  [two] b = Mul(a, v)  c = Add(b, out)  y = Reshape(c, all)"
    text = f"{HEADER} g (float[2] x) => (float[2] y, float[2] out) <{constants}> {{ {body} }}"
    reduced = to_fp16(onnx.parser.parse_model(text), float_nodes=["two"]).model
    stored = {tensor.name: tensor.data_type for tensor in reduced.graph.initializer}
    int64 = onnx.TensorProto.INT64
    assert stored == {
        "all": int64, "w": FLOAT16, "v": FLOAT, "unread": FLOAT, "out": FLOAT, "out:fp16": FLOAT16,
    }  # fmt: skip


def test_casts_have_names_types_and_shapes():
    reduced = to_fp16(graph_of("[relu] y = Relu(x)", {}, **ENDS)).model
    assert [(node.name, list(node.input), list(node.output)) for node in reduced.graph.node] == [
        ("x:fp16.cast", ["x"], ["x:fp16"]),
        ("relu", ["x:fp16"], ["y:fp16"]),
        ("y.cast", ["y:fp16"], ["y"]),
    ]
    kinds = {info.name: info.type.tensor_type for info in reduced.graph.value_info}
    assert {name: kind.elem_type for name, kind in kinds.items()} == {"x:fp16": FLOAT16, "y:fp16": FLOAT16}
    assert [dim.dim_param or dim.dim_value for dim in kinds["x:fp16"].shape.dim] == ["N", 1, 2, 2]


def test_names_of_casts_avoid_those_in_use():
    model = graph_of("b = Relu(x)  y = Neg(b)", {}, "float[2] x", "float[2] y", HEADER)
    text = onnx.printer.to_text(model)
    model = onnx.parser.parse_model(text.replace(" b", ' "x:fp16"').replace("(b", '("x:fp16"'))
    assert casts(to_fp16(model).model) == [("x", "x:fp16_"), ("y:fp16", "y")]


def test_nodes_without_names_get_one_each():
    model = graph_of("a = Max(x, w)  y = Max(a, w)", {"w": 1}, **ENDS)
    assert len(to_fp16(model).reasons) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_that_contradicts_itself_is_refused(precision):
    model = graph_of("y = Relu(x)", {}, "float[2,2] x", "float[3] y", HEADER, check=False)
    with pytest.raises(ModelFileError) as caught:
        reduce_precision(model, precision)
    assert caught.value.subject == "g"


@pytest.mark.parametrize(("opset", "lifted"), [(5, 6), (6, 6), (7, 7)])
def test_fp16_lifts_operator_sets_in_which_a_cast_takes_the_name_of_a_type(opset, lifted):
    model = graph_of("y = Neg(x)", {}, "float[2] x", "float[2] y", f'<ir_version: 3, opset_import: ["" : {opset}]>')
    assert to_fp16(model).model.opset_import[0].version == lifted


# -- BF16


def test_nothing_is_too_large_for_bf16():
    model = graph_of("y = Mul(x, w)", {"w": 1e30}, **ENDS)
    reduced = to_bf16(model, ranges={"x": 1e35, "y": np.inf})
    assert (reduced.float_nodes, reduced.notes) == ((), ())


def test_weights_are_rounded_as_pytorch_rounds_them():
    for tensor in to_bf16(_block()).model.graph.initializer:
        assert tensor.data_type == BFLOAT16
        stored = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        expected = torch.from_numpy(_constants()[tensor.name]).bfloat16().float().numpy()
        np.testing.assert_array_equal(stored, expected)


def test_a_block_computes_what_pytorch_computes_in_bfloat16():
    """Both round each tensor; sums taken in another order may land on the neighbouring BF16 number, 2⁻⁷ away."""
    x, w, b, scale = (torch.from_numpy(array).bfloat16() for array in (_images(), *_constants().values()))
    joined = torch.cat([x, functional.conv2d(x, w, b, padding=1).relu()], 1)
    expected = functional.max_pool2d(joined * scale, 2).float().numpy()
    (found,) = evaluate(to_bf16(_block()).model, {"x": _images()}).values()
    np.testing.assert_allclose(found, expected, rtol=2**-6, atol=2**-7)
    assert np.abs(found - evaluate(_block(), {"x": _images()})["y"]).max() > 1e-3


def test_an_operator_without_a_bf16_form_stays_in_fp32():
    model = graph_of("a = Relu(x)  [celu] b = Celu(a)  y = Neg(b)", {}, "float[2] x", "float[2] y", HEADER)
    reduced = to_bf16(model)
    assert reduced.reasons == {"celu": "Celu has no BF16 form in operator set 22"}
    assert useless_casts(reduced.model) == []


def test_a_model_that_cannot_be_lifted_is_refused():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { y = Upsample(x) }'
    )
    with pytest.raises(ModelFileError) as caught:
        to_bf16(model)
    assert caught.value.subject == "g"


def test_lifting_raises_the_ir_version_and_leaves_newer_models_unchanged():
    model = ir.from_proto(_block('<ir_version: 8, opset_import: ["" : 17]>'))
    lift_opset(model, 19)
    assert (model.opset_imports[""], model.ir_version) == (19, 9)
    lift_opset(model, 13)
    assert model.opset_imports[""] == 19
    newer = ir.from_proto(_block('<ir_version: 11, opset_import: ["" : 17]>'))
    lift_opset(newer, 19)
    assert newer.ir_version == 11


# -- in place, as the recipe for TensorRT uses it


def test_a_graph_with_quantizers_becomes_fp16_between_them():
    body = "[q] q = QuantizeLinear(x, s, z)  [dq] d = DequantizeLinear(q, s, z)  [neg] y = Neg(d)"
    proto = graph_of(body, {"s": 0.5}, header='<ir_version: 9, opset_import: ["" : 19]>', check=False, **ENDS)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), "z"))
    model = ir.from_proto(proto)
    to_fp16_in_place(model)
    reduced = ir.to_proto(model)
    types = types_of(reduced)
    assert {name: types[name] for name in ("x", "s", "d", "y")} == {"x": FLOAT, "s": FLOAT16, "d": FLOAT16, "y": FLOAT}
    np.testing.assert_array_equal(evaluate(reduced, {"x": X})["y"], -X)


@pytest.mark.parametrize(
    "weight", [65536, -65536, float(np.nextafter(np.float32(65504), np.float32(7e4))), np.inf, np.nan]
)
def test_in_place_a_weight_beyond_fp16_is_refused(weight):
    model = ir.from_proto(graph_of("y = Mul(x, w)", {"w": [1, weight]}, "float[2] x", "float[2] y"))
    with pytest.raises(ModelFileError) as caught:
        to_fp16_in_place(model)
    assert caught.value.subject == "w"


@pytest.mark.parametrize("weight", [65504.0, -65504.0])
def test_in_place_the_largest_weights_are_converted(weight):
    model = ir.from_proto(graph_of("y = Mul(x, w)", {"w": weight}, **ENDS))
    to_fp16_in_place(model)
    (tensor,) = ir.to_proto(model).graph.initializer
    assert (tensor.data_type, onnx.numpy_helper.to_array(tensor)) == (FLOAT16, weight)


def test_in_place_an_operator_that_onnx_does_not_know_stays_in_fp32():
    model = ir.from_proto(graph_of("a = Relu(x)  [odd] b = Odd(a)  y = Neg(x)", {}, check=False, **ENDS))
    to_fp16_in_place(model)
    assert [(node.op_type, node.inputs[0].dtype) for node in model.graph if node.op_type != "Cast"] == [
        ("Relu", ir.DataType.FLOAT16),
        ("Odd", ir.DataType.FLOAT),
        ("Neg", ir.DataType.FLOAT16),
    ]


# -- the same rounding in FP32

BODY = "[mul] a = Mul(x, w)  [add] b = Add(a, v)  [relu] y = Relu(b)"
NUMBERS = {"w": 1.2345678, "v": 0.0312345}
NOISE = np.random.default_rng(0).standard_normal((1, 1, 2, 2)).astype(np.float32)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_tensor_is_rounded_as_its_type_rounds(precision, kind):
    """With all of ONNX Runtime's rewrites: none of them may remove a Cast."""
    reduced = reduce_precision(graph_of(BODY, NUMBERS, **ENDS), precision).model
    found = run_all(rounded(reduced), {"x": NOISE})["y"]

    def near(array):
        return np.asarray(array, np.float32).astype(kind).astype(np.float32)

    w, v = near(NUMBERS["w"]), near(NUMBERS["v"])
    np.testing.assert_array_equal(found, np.maximum(near(near(near(NOISE) * w) + v), 0))


def test_nodes_in_fp32_are_not_rounded():
    model = graph_of(BODY, NUMBERS, **ENDS)
    reduced = to_fp16(model, float_nodes=["mul", "add", "relu"]).model
    np.testing.assert_array_equal(run_all(rounded(reduced), {"x": NOISE})["y"], run_all(model, {"x": NOISE})["y"])


def test_an_overflow_becomes_infinite():
    reduced = to_fp16(graph_of("[up] a = Mul(x, w)  [down] y = Mul(a, v)", {"w": 6e4, "v": 1e-4}, **ENDS)).model
    assert np.isinf(run_all(rounded(reduced), {"x": X})["y"]).all()

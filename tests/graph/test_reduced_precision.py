"""FP16 and BF16: networks stay close, what does not fit stays in FP32, and there are as few Casts as possible."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from densenet_deploy.errors import ModelFileError, UnknownNameError
from densenet_deploy.graph.reduced_precision import (
    LARGEST,
    MARGIN,
    ReducedModel,
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
    types_of,
    useless_casts,
)

to_fp16 = partial(reduce_precision, precision="fp16")
to_bf16 = partial(reduce_precision, precision="bf16")
PRECISIONS = ("fp16", "bf16")
# Measured 0.9999998 and better in FP16, 0.99995 and better in BF16 with every tensor rounded.
COSINES = {"fp16": 0.9999, "bf16": 0.999}
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


def _session(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute `model` as the product does, with all of ONNX Runtime's rewrites."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def _results(reduced: ReducedModel, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Results of the onnx package, with every tensor rounded, and of ONNX Runtime, which has no BF16 Conv."""
    results = [evaluate(reduced.model, feeds)]
    is_bf16 = any(tensor.data_type == BFLOAT16 for tensor in reduced.model.graph.initializer)
    return results if is_bf16 else [*results, _session(reduced.model, feeds)]


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
    assert reduce_precision(model, precision).float_nodes == ("own",)


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
    assert reduced.ir_version >= (10 if opset < 22 and precision == "bf16" else 8)
    assert reduced.metadata_props == model.metadata_props
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_unknown_node_is_refused(precision):
    with pytest.raises(UnknownNameError) as caught:
        reduce_precision(_block(), precision, float_nodes=["conf"])
    assert caught.value.subject == "conf"
    assert "'conv'" in str(caught.value)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_of_16_bits_is_refused(precision):
    with pytest.raises(ModelFileError) as caught:
        reduce_precision(reduce_precision(_block(), precision).model, precision)
    assert caught.value.subject == "g"


def test_an_unknown_precision_is_refused():
    with pytest.raises(UnknownNameError):
        reduce_precision(_block(), "fp61")


# -- FP16: what does not fit


def test_an_activation_that_would_overflow_stays_finite_because_its_nodes_stay_in_fp32():
    reduced = to_fp16(_loud(), ranges=LOUD_RANGES)
    assert reduced.float_nodes == LOUD_NODES
    assert "120000" in reduced.reasons["conv"]
    assert {kind for name, kind in types_of(reduced.model).items() if name in "abc"} == {FLOAT}
    # d is made in FP32 for b and read in FP16 by the sum, through one Cast
    assert types_of(reduced.model)[node_named(reduced.model, "sum").input[0]] == FLOAT16
    for results in _results(reduced, {"x": X}):
        np.testing.assert_allclose(results["y"], np.full_like(X, 24), rtol=1e-3)
    assert useless_casts(reduced.model) == []


def test_without_ranges_the_same_activation_overflows():
    """Where each tensor is rounded to FP16; ONNX Runtime on an x86 CPU keeps it in FP32 and does not show it."""
    reduced = to_fp16(_loud())
    assert reduced.float_nodes == ()
    assert not np.isfinite(evaluate(reduced.model, {"x": X})["y"]).any()


@pytest.mark.parametrize(("reach", "stays"), [(LARGEST / MARGIN, False), (LARGEST / MARGIN + 1, True), (np.nan, True)])
def test_a_range_has_to_leave_a_margin(reach, stays):
    assert to_fp16(_loud(), ranges={"y": reach}).float_nodes == (("sum",) if stays else ())


def test_an_output_that_would_overflow_is_not_cast():
    model = graph_of("[relu] a = Relu(x)  [mul] y = Mul(a, w)", {"w": 6e4}, **ENDS)
    reduced = to_fp16(model, ranges={"a": 3.0, "y": 1.8e5})
    assert reduced.float_nodes == ("mul",)
    assert node_named(reduced.model, "mul").output[0] == "y"
    for results in _results(reduced, {"x": X}):
        np.testing.assert_array_equal(results["y"], np.full_like(X, 1.8e5))


def test_an_input_that_would_overflow_is_not_cast():
    model = graph_of("[mul] a = Mul(x, w)  [relu] y = Relu(a)", {"w": 2.0**-14}, **ENDS)
    reduced = to_fp16(model, ranges={"x": 2.0**17})
    assert node_named(reduced.model, "mul").input[0] == "x"
    for results in _results(reduced, {"x": np.full_like(X, 2.0**17)}):
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


def test_weights_too_small_for_fp16_are_counted():
    weights = np.array([1e-9, -1e-9, 0, 2.0**-24, 1], np.float32)
    reduced = to_fp16(graph_of("y = Mul(x, w)", {"w": weights}, inputs="float[5] x", outputs="float[5] y"))
    assert reduced.notes[0].startswith("2 of 5 weights")
    (stored,) = (onnx.numpy_helper.to_array(tensor) for tensor in reduced.model.graph.initializer)
    np.testing.assert_array_equal(stored, np.float16([2**-24, -(2**-24), 0, 2**-24, 1]))
    assert to_fp16(_loud(), ranges=LOUD_RANGES).notes == ()


def test_constants_of_nodes_are_converted_and_checked():
    model = graph_of("[big] w = Constant<value_float: float = 7e4>()  [mul] y = Mul(x, w)", {}, **ENDS)
    assert to_fp16(model).float_nodes == ("mul",)
    model = graph_of("[big] w = Constant<value_float: float = 7.0>()  [mul] y = Mul(x, w)", {}, **ENDS)
    assert to_fp16(model).float_nodes == ()


def test_an_operator_that_onnx_runtime_keeps_in_fp32_stays_there():
    reduced = to_fp16(graph_of("a = Relu(x)  [max] y = Max(a, w)", {"w": 1}, **ENDS))
    assert list(reduced.reasons) == ["max"]


def test_an_operator_without_an_fp16_form_stays_in_fp32():
    body = "[quantize] q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)"
    model = graph_of(body, {}, header='<ir_version: 10, opset_import: ["" : 20]>', **ENDS)
    assert to_fp16(model).float_nodes == ("quantize",)


# -- BF16


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
    assert reduced.float_nodes == ("celu",)
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


@pytest.mark.parametrize("weight", [7e4, np.inf, np.nan])
def test_in_place_a_weight_beyond_fp16_is_refused(weight):
    model = ir.from_proto(graph_of("y = Mul(x, w)", {"w": weight}, **ENDS))
    with pytest.raises(ModelFileError) as caught:
        to_fp16_in_place(model)
    assert caught.value.subject == "w"


# -- the same rounding in FP32

BODY = "[mul] a = Mul(x, w)  [add] b = Add(a, v)  [relu] y = Relu(b)"
NUMBERS = {"w": 1.2345678, "v": 0.0312345}
NOISE = np.random.default_rng(0).standard_normal((1, 1, 2, 2)).astype(np.float32)


@pytest.mark.parametrize(("precision", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_tensor_is_rounded_as_its_type_rounds(precision, kind):
    """With all of ONNX Runtime's rewrites: none of them may remove a Cast."""
    reduced = reduce_precision(graph_of(BODY, NUMBERS, **ENDS), precision).model
    found = _session(rounded(reduced), {"x": NOISE})["y"]

    def near(array):
        return np.asarray(array, np.float32).astype(kind).astype(np.float32)

    w, v = near(NUMBERS["w"]), near(NUMBERS["v"])
    np.testing.assert_array_equal(found, np.maximum(near(near(near(NOISE) * w) + v), 0))


def test_nodes_in_fp32_are_not_rounded():
    model = graph_of(BODY, NUMBERS, **ENDS)
    reduced = to_fp16(model, float_nodes=["mul", "add", "relu"]).model
    np.testing.assert_array_equal(_session(rounded(reduced), {"x": NOISE})["y"], _session(model, {"x": NOISE})["y"])


def test_an_overflow_becomes_infinite():
    reduced = to_fp16(graph_of("[up] a = Mul(x, w)  [down] y = Mul(a, v)", {"w": 6e4, "v": 1e-4}, **ENDS)).model
    assert np.isinf(_session(rounded(reduced), {"x": X})["y"]).all()

"""FP16: small networks stay close, what would overflow stays in FP32, and the Casts are as few as can be."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_deploy.errors import ModelFileError, UnknownNameError
from densenet_deploy.graph.fp16 import LARGEST, MARGIN, to_fp16
from densenet_deploy.graph.half import HalfModel
from tests.graph.half_models import (
    FLOAT,
    FLOAT16,
    casts,
    cosine,
    evaluate,
    graph_of,
    node_named,
    saved,
    types_of,
    useless_casts,
)
from tests.graph.passes.networks import Network, run

X = np.full((1, 1, 2, 2), 3, np.float32)
ENDS = {"inputs": "float[N,1,2,2] x", "outputs": "float[N,1,2,2] y"}

# a = 1.2e5 is read twice; what follows brings it back to 12 and 0, which fit.
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


def _results(half: HalfModel, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What ONNX Runtime computes on the CPU, and what the onnx package computes with every tensor rounded to FP16."""
    session = onnxruntime.InferenceSession(half.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(None, feeds), strict=True)), evaluate(half.model, feeds)]


def _feeds(network: Network) -> dict[str, np.ndarray]:
    return {network.proto.graph.input[0].name: network.images}


def test_a_network_computes_nearly_the_same(network, tmp_path):
    """Measured 0.9999998 and better."""
    half = to_fp16(network.proto)
    assert (half.float_nodes, half.reasons) == ((), {})
    expected = run(network.proto, network.images)
    for results in _results(half, _feeds(network)):
        for name, array in results.items():
            assert array.dtype == np.float32
            assert cosine(expected[name], array) >= 0.9999
    assert saved(half.model, tmp_path) == half.model


def test_weights_and_tensors_are_fp16_behind_a_cast_at_each_end(network):
    half = to_fp16(network.proto).model
    ends = {value.name for value in (*half.graph.input, *half.graph.output)}
    assert {name for name, kind in types_of(half).items() if kind == FLOAT} == ends
    assert len(casts(half)) == len(ends)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_network_computes_nearly_the_same_with_some_nodes_in_fp32(network, every):
    names = [node.name for node in to_fp16(network.proto).model.graph.node if node.op_type != "Cast"]
    half = to_fp16(network.proto, float_nodes=names[::every])
    assert half.float_nodes == tuple(names[::every])
    assert useless_casts(half.model) == []
    expected = run(network.proto, network.images)
    for results in _results(half, _feeds(network)):
        assert all(cosine(expected[name], array) >= 0.9999 for name, array in results.items())


def test_nodes_kept_in_fp32_read_and_make_fp32(network):
    convs = [node.name for node in to_fp16(network.proto).model.graph.node if node.op_type == "Conv"]
    half = to_fp16(network.proto, float_nodes=convs)
    types = types_of(half.model)
    for node in half.model.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in (*node.input, *node.output)} == {FLOAT}


def test_with_every_node_in_fp32_nothing_changes(network):
    names = [node.name for node in to_fp16(network.proto).model.graph.node if node.op_type != "Cast"]
    half = to_fp16(network.proto, float_nodes=names)
    assert casts(half.model) == []
    expected, found = run(network.proto, network.images), run(half.model, network.images)
    assert list(expected) == list(found)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def test_tensors_keep_their_names(network):
    inner = {name for node in network.proto.graph.node for name in node.output}
    inner -= {value.name for value in network.proto.graph.output}
    some = [node.name for node in to_fp16(network.proto).model.graph.node if node.op_type == "Relu"]
    for half in (to_fp16(network.proto), to_fp16(network.proto, float_nodes=some)):
        assert inner <= {name for node in half.model.graph.node for name in node.output}


def test_an_activation_that_would_overflow_stays_finite_because_its_nodes_stay_in_fp32():
    half = to_fp16(_loud(), LOUD_RANGES)
    assert half.float_nodes == LOUD_NODES
    assert half.reasons["conv"] == "a reaches 120000 in calibration, more than 1/2 of 65504, the largest FP16 number"
    assert {kind for name, kind in types_of(half.model).items() if name in "abc"} == {FLOAT}
    assert node_named(half.model, "sum").input[0] == "d"
    assert types_of(half.model)["d"] == FLOAT16
    for results in _results(half, {"x": X}):
        np.testing.assert_allclose(results["y"], np.full_like(X, 24), rtol=1e-3)
    assert useless_casts(half.model) == []


def test_without_ranges_the_same_activation_overflows():
    """Where each tensor is rounded to FP16; ONNX Runtime on an x86 CPU keeps it in FP32 and does not show it."""
    half = to_fp16(_loud())
    assert half.float_nodes == ()
    assert not np.isfinite(evaluate(half.model, {"x": X})["y"]).any()


@pytest.mark.parametrize(("reach", "stays"), [(LARGEST / MARGIN, False), (LARGEST / MARGIN + 1, True), (np.nan, True)])
def test_a_range_has_to_leave_a_margin(reach, stays):
    half = to_fp16(_loud(), {"y": reach})
    assert half.float_nodes == (("sum",) if stays else ())


def test_an_output_that_would_overflow_is_not_cast():
    model = graph_of("[relu] a = Relu(x)  [mul] y = Mul(a, w)", {"w": 6e4}, **ENDS)
    half = to_fp16(model, {"a": 3.0, "y": 1.8e5})
    assert half.float_nodes == ("mul",)
    assert node_named(half.model, "mul").output[0] == "y"
    for results in _results(half, {"x": X}):
        np.testing.assert_array_equal(results["y"], np.full_like(X, 1.8e5))


def test_an_input_that_would_overflow_is_not_cast():
    model = graph_of("[mul] a = Mul(x, w)  [relu] y = Relu(a)", {"w": 2.0**-14}, **ENDS)
    half = to_fp16(model, {"x": 2.0**17})
    assert node_named(half.model, "mul").input[0] == "x"
    for results in _results(half, {"x": np.full_like(X, 2.0**17)}):
        np.testing.assert_array_equal(results["y"], np.full_like(X, 8))


def test_a_weight_that_would_overflow_keeps_its_node_in_fp32():
    model = graph_of("[mul] a = Mul(x, w)  [back] y = Mul(a, v)", {"w": 7e4, "v": 65504e-10}, **ENDS)
    half = to_fp16(model)
    assert half.float_nodes == ("mul",)
    assert half.reasons["mul"] == "its weight w holds 70000, beyond 65504, the largest FP16 number"
    assert types_of(half.model)["w"] == FLOAT
    assert types_of(half.model)["v"] == FLOAT16


@pytest.mark.parametrize("weight", [65504.0, -65504.0, np.inf, np.nan])
def test_a_weight_that_fp16_holds_is_converted_as_it_is(weight):
    half = to_fp16(graph_of("y = Mul(x, w)", {"w": weight}, **ENDS))
    assert half.float_nodes == ()
    (stored,) = (onnx.numpy_helper.to_array(tensor) for tensor in half.model.graph.initializer)
    np.testing.assert_array_equal(stored, np.float16(weight))


def test_weights_too_small_for_fp16_are_counted():
    weights = np.array([1e-9, -1e-9, 0, 2.0**-24, 1], np.float32)
    half = to_fp16(graph_of("y = Mul(x, w)", {"w": weights}, inputs="float[5] x", outputs="float[5] y"))
    assert half.notes == ("2 of 5 weights were raised to 2⁻²⁴, the smallest FP16 number",)
    (stored,) = (onnx.numpy_helper.to_array(tensor) for tensor in half.model.graph.initializer)
    np.testing.assert_array_equal(stored, np.float16([2**-24, -(2**-24), 0, 2**-24, 1]))
    assert to_fp16(_loud(), LOUD_RANGES).notes == ()


def test_constants_of_nodes_are_converted_and_looked_at():
    model = graph_of("[big] w = Constant<value_float: float = 7e4>()  [mul] y = Mul(x, w)", {}, **ENDS)
    assert to_fp16(model).float_nodes == ("mul",)
    model = graph_of("[big] w = Constant<value_float: float = 7.0>()  [mul] y = Mul(x, w)", {}, **ENDS)
    assert to_fp16(model).float_nodes == ()


def test_an_operator_that_the_converter_leaves_alone_is_named():
    half = to_fp16(graph_of("a = Relu(x)  [max] y = Max(a, w)", {"w": 1}, **ENDS))
    assert half.reasons == {"max": "ONNX Runtime's converter keeps every Max in FP32"}


def test_inputs_and_outputs_can_be_fp16():
    for half in (to_fp16(_loud(), keep_io=False), to_fp16(_loud(), LOUD_RANGES, keep_io=False)):
        types = types_of(half.model)
        assert (types["x"], types["y"]) == (FLOAT16, FLOAT16)
        assert useless_casts(half.model) == []
    results = evaluate(half.model, {"x": X.astype(np.float16)})
    np.testing.assert_allclose(results["y"], np.full(X.shape, 24, np.float16), rtol=1e-3)


@pytest.mark.parametrize("opset", [13, 17, 20, 22])
def test_opset_metadata_and_the_given_model_stay(opset):
    model = graph_of(
        LOUD, {"w": [[[[4]]]], "tiny": 1}, header=f'<ir_version: 10, opset_import: ["" : {opset}]>', **ENDS
    )
    model.metadata_props.add(key="densenet_deploy.labels", value="cat\ndog")
    before = model.SerializeToString(deterministic=True)
    half = to_fp16(model, float_nodes=["relu"])
    assert [(entry.domain, entry.version) for entry in half.model.opset_import] == [("", opset)]
    assert half.model.metadata_props == model.metadata_props
    assert model.SerializeToString(deterministic=True) == before


def test_a_name_that_no_node_has_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        to_fp16(_loud(), float_nodes=["conf"])


def test_a_model_in_fp16_is_refused():
    with pytest.raises(ModelFileError, match="holds 16-bit floats already"):
        to_fp16(to_fp16(_loud()).model)


def test_an_operator_without_an_fp16_form_is_refused_until_it_is_named():
    body = "[quantize] q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)"
    model = graph_of(body, {}, header='<ir_version: 10, opset_import: ["" : 20]>', **ENDS)
    with pytest.raises(ModelFileError, match=r"no valid graph in FP16.*DynamicQuantizeLinear.*float_nodes"):
        to_fp16(model)
    assert to_fp16(model, float_nodes=["quantize"]).float_nodes == ("quantize",)

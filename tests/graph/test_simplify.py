"""Simplifying with onnxsim: constants fold, but for quantized files; names and metadata stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.simplify import simplify_onnx

HEADER = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
QUANTIZED = (
    HEADER
    + """
g (float[N,1,4,4] x) => (float[N,2,4,4] y)
<int8[2,1,1,1] w = {5, -7}, float s = {0.5}, int8 zero = {0}, float[1] one = {1}, float[1] two = {2}>
{
  xq = QuantizeLinear(x, s, zero)
  xd = DequantizeLinear(xq, s, zero)
  wd = DequantizeLinear(w, s, zero)
  c = Conv(xd, wd)
  three = Add(one, two)
  y = Mul(c, three)
}
"""
)
FLOAT = (
    HEADER
    + """
g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
{ c = Add(a, b)  i = Identity(x)  y = Mul(i, c) }
"""
)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_constants_fold_and_identities_go():
    model = onnx.parser.parse_model(FLOAT)
    result = simplify_onnx(model)
    assert _operators(result.model) == ["Mul"]
    assert result.notes == ()
    x = np.array([[1, 2]], np.float32)
    np.testing.assert_array_equal(_run(result.model, x), _run(model, x))


def test_weights_of_a_quantized_file_stay_int8_and_it_is_said():
    model = onnx.parser.parse_model(QUANTIZED)
    result = simplify_onnx(model)
    stored = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert stored["w"] == onnx.TensorProto.INT8
    kept = ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Add", "Mul"]
    assert sorted(_operators(result.model)) == sorted(kept)
    assert result.notes == ("the file is quantized: constants were not folded, so that int8 weights stay int8",)
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    np.testing.assert_array_equal(_run(result.model, x), _run(model, x))


def test_the_model_given_is_unchanged():
    model = onnx.parser.parse_model(FLOAT)
    before = model.SerializeToString(deterministic=True)
    simplify_onnx(model)
    assert model.SerializeToString(deterministic=True) == before


def test_norms_are_left_to_the_pass_that_keeps_names():
    body = """
    g (float[N,1,4,4] x) => (float[N,2,4,4] y)
    <float[2,1,1,1] w = {5, -7}, float[2] g = {1, 2}, float[2] b = {3, 4}, float[2] m = {5, 6}, float[2] v = {7, 8}>
    { c = Conv(x, w)  y = BatchNormalization(c, g, b, m, v) }
    """
    assert _operators(simplify_onnx(onnx.parser.parse_model(HEADER + body)).model) == ["Conv", "BatchNormalization"]


def test_equal_initializers_stay_apart():
    body = (
        "g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> { c = Mul(x, a)  y = Add(c, b) }"
    )
    result = simplify_onnx(onnx.parser.parse_model(HEADER + body))
    assert {tensor.name for tensor in result.model.graph.initializer} == {"a", "b"}


def test_metadata_is_the_models_own():
    model = onnx.parser.parse_model(FLOAT)
    onnx.helper.set_model_props(model, {"fact": "1"})
    assert [(p.key, p.value) for p in simplify_onnx(model).model.metadata_props] == [("fact", "1")]


def test_nothing_is_printed(capfd):
    simplify_onnx(onnx.parser.parse_model(FLOAT))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_onnxsim_refuses_is_a_model_error():
    broken = onnx.parser.parse_model(HEADER + "broken (float[2] x) => (float[2] y) { y = Relu(gone) }")
    with pytest.raises(ModelFileError) as caught:
        simplify_onnx(broken)
    assert caught.value.subject == "broken"

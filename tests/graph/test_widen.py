"""16-bit graphs in float32: the same numbers, no Cast in between."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from densenet_deploy.graph.layer_precision import layer_precisions
from densenet_deploy.graph.reduced_precision import reduce_precision
from densenet_deploy.graph.widen import widened
from tests.foreign_networks import Encoding, image, written
from tests.graph.test_foreign import _run

# FP16 rounds each of some 20 weights and activations by 2⁻¹¹ at most, BF16 by 2⁻⁸, of scores near 3.
ROUNDING = {"fp16": 2e-2, "bf16": 2e-1}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_reduced_network_becomes_float32_again(precision):
    float32 = written(Encoding())
    model = widened(reduce_precision(float32, precision).model)
    assert {layer.precision for layer in layer_precisions(model)} == {"fp32"}
    assert not [node for node in model.graph.node if node.op_type == "Cast"]
    images = image(Encoding())
    np.testing.assert_allclose(_run(model, images), _run(float32, images), atol=ROUNDING[precision])


@pytest.mark.parametrize("opset", [13, 17])
def test_weights_keep_their_numbers_and_types_in_attributes_follow(opset):
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float16[N,2] x) => (float16[N,2] y)
        <float16[2] w = {{15360, 16384}}, float[1] kept = {{0.1}}> {{
            two = Constant<value = int64[1] {{2}}>()
            c = Constant<value = float16[1] {{14336}}>()  f = ConstantOfShape<value = float16[1] {{17408}}>(two)
            k = Cast<to=10>(kept)  a = Add(x, w)  b = Mul(a, c)  d = Add(b, f)  y = Mul(d, k) }}"""
    model = onnx.parser.parse_model(text)
    before = model.SerializeToString()
    wide = widened(model)
    assert model.SerializeToString() == before
    result = _run(wide, np.array([[1, 2]], np.float32))
    np.testing.assert_allclose(result, 0.1 * (0.5 * np.array([[2, 4]]) + 4), rtol=1e-6)
    assert wide.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_an_attribute_of_another_operator_may_share_a_name_with_those_that_hold_a_type():
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> g (float16[N,2] x) => (float16[N,2] y)
        { y = mine.Carry<to="left", dtype=10>(x) }"""
    (node,) = widened(onnx.parser.parse_model(text)).graph.node
    assert {name.name: onnx.helper.get_attribute_value(name) for name in node.attribute} == {"to": b"left", "dtype": 1}


def test_a_float32_graph_stays():
    model = written(Encoding())
    assert [node.op_type for node in widened(model).graph.node] == [node.op_type for node in model.graph.node]

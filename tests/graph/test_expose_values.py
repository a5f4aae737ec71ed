"""Inner tensors as outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from densenet_deploy.graph.expose_values import expose_values
from tests.graph.onnx_text import model_of, outputs_of

MODEL = model_of("a = Relu(x)  b = Neg(a)  y = Exp(b)", "", outputs="float[N,3,5,5] y")


def test_every_value_is_an_output_in_execution_order():
    exposed = expose_values(ir.to_proto(MODEL))
    assert [value.name for value in exposed.graph.output] == ["a", "b", "y"]


def test_the_values_are_those_that_the_graph_computes():
    typed = onnx.shape_inference.infer_shapes(ir.to_proto(MODEL))
    relu, negated, result = outputs_of(ir.from_proto(expose_values(typed)))
    np.testing.assert_array_equal(negated, -relu)
    np.testing.assert_array_equal([result], outputs_of(MODEL))


def test_the_model_itself_is_left_as_it_is():
    proto = ir.to_proto(MODEL)
    before = proto.SerializeToString(deterministic=True)
    expose_values(proto)
    assert proto.SerializeToString(deterministic=True) == before

"""The float32 form of a 16-bit graph rounds every tensor, exactly as its type does, and nothing else."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_deploy.graph.bf16 import to_bf16
from densenet_deploy.graph.fp16 import to_fp16
from densenet_deploy.graph.rounded import rounded
from tests.graph.half_models import FLOAT, graph_of, types_of

BODY = "[mul] a = Mul(x, w)  [add] b = Add(a, v)  [relu] y = Relu(b)"
ENDS = {"inputs": "float[1,1,4,4] x", "outputs": "float[1,1,4,4] y"}
NUMBERS = {"w": 1.2345678, "v": 0.0312345}
X = np.random.default_rng(0).standard_normal((1, 1, 4, 4)).astype(np.float32)
TO_HALF = {np.float16: to_fp16, ml_dtypes.bfloat16: to_bf16}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Compute `model` as the product does, with all of ONNX Runtime's rewrites: none may take a Cast away."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("kind", TO_HALF, ids=["fp16", "bf16"])
def test_every_tensor_is_rounded_as_its_type_rounds(kind):
    half = TO_HALF[kind](graph_of(BODY, NUMBERS, **ENDS)).model
    found = run(rounded(half), X)

    def near(array):
        return np.asarray(array, np.float32).astype(kind).astype(np.float32)

    w, v = near(NUMBERS["w"]), near(NUMBERS["v"])
    np.testing.assert_array_equal(found, np.maximum(near(near(near(X) * w) + v), 0))


def test_what_stays_in_fp32_is_not_rounded():
    model = graph_of(BODY, NUMBERS, **ENDS)
    half = to_fp16(model, float_nodes=["mul", "add", "relu"]).model
    np.testing.assert_array_equal(run(rounded(half), X), run(model, X))


def test_what_overflows_becomes_infinite():
    half = to_fp16(graph_of("[up] a = Mul(x, w)  [down] y = Mul(a, v)", {"w": 6e4, "v": 1e-4}, **ENDS)).model
    assert np.isinf(run(rounded(half), np.full_like(X, 2))).all()


def test_every_network_becomes_float32_throughout(network):
    for half in (to_fp16(network.proto).model, to_bf16(network.proto).model):
        before = half.SerializeToString(deterministic=True)
        plain = rounded(half)
        onnx.checker.check_model(plain, full_check=True)
        assert {kind for name, kind in types_of(plain).items() if ":narrow" not in name} >= {FLOAT}
        stored = {tensor.data_type for tensor in plain.graph.initializer}
        assert not stored & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        assert half.SerializeToString(deterministic=True) == before

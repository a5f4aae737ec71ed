"""The effect of quantization on outputs, measured layer by layer, and corrected."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.nodes import constant, new_initializer
from densenet_deploy.quantization.output_correction import (
    Correction,
    Moments,
    classifier_of,
    conv_corrections,
    correct_classifier,
    correct_conv,
)
from tests.graph.onnx_text import model_of, outputs_of, weights

BODY = "a = Conv<pads=[1,1,1,1]>(x, w)  y = Conv(a, v)"
SAMPLES = list(np.random.default_rng(0).standard_normal((8, 1, 3, 5, 5)).astype(np.float32))
GAIN, SHIFT = np.array([1.1, 0.9, 1.0, 1.2]), np.array([1.0, -2.0, 0.5, 0.0])


def _model() -> ir.Model:
    model = model_of(BODY, weights(w=(4, 3, 3, 3), v=(4, 4, 1, 1)))
    for node, name in zip(model.graph, ("first", "second"), strict=True):
        node.name = name
    return model


def _with_the_second_changed() -> onnx.ModelProto:
    """A stand-in for quantization that makes ŷ = (y - SHIFT) / GAIN of the second Conv's y."""
    model = _model()
    correct_conv(model.graph, model.graph[1], Correction(1 / GAIN, -SHIFT / GAIN))
    return ir.to_proto(model)


def test_the_affine_map_of_every_channel_is_found():
    found = conv_corrections(_model(), _with_the_second_changed(), SAMPLES)
    np.testing.assert_allclose(found["second"].gain, GAIN, rtol=1e-4)
    np.testing.assert_allclose(found["second"].shift, SHIFT, atol=1e-4)
    np.testing.assert_allclose(found["first"].gain, 1, rtol=1e-6)
    np.testing.assert_allclose(found["first"].shift, 0, atol=1e-6)


BRANCHES = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N,3,5,5] x) => (float[N,4,5,5] y, float[N,4,5,5] z) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    q = Identity (a)
    z = If (yes) <then_branch = one () => (float[N,4,5,5] i) { i = Relu(q) },
                  else_branch = two () => (float[N,4,5,5] j) { j = Neg(a) }>
    y = Conv(a, v)
}
"""


def test_branches_that_read_values_from_outside_are_measured_beside_it_too():
    def branched(text: str) -> ir.Model:
        proto = onnx.parser.parse_model(text)
        rng = np.random.default_rng(0)
        for name, array in (
            ("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32)),
            ("v", rng.standard_normal((4, 4, 1, 1)).astype(np.float32)),
            ("yes", np.array(True)),
        ):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model = ir.from_proto(proto)
        for number, node in enumerate(model.graph):
            node.name = str(number)
        return model

    changed = branched(BRANCHES.replace("q", "a_quantized"))  # a name that only one of both has
    correct_conv(changed.graph, changed.graph[3], Correction(1 / GAIN, -SHIFT / GAIN))
    found = conv_corrections(branched(BRANCHES), ir.to_proto(changed), SAMPLES)
    np.testing.assert_allclose(found["3"].gain, GAIN, rtol=1e-4)


def test_a_corrected_convolution_gives_the_affine_map_of_what_it_gave():
    model = _model()
    before = outputs_of(model)[0]
    correct_conv(model.graph, model.graph[1], Correction(GAIN, SHIFT))
    after = outputs_of(model)[0]
    # two roundings of constants, sums of 4 products
    np.testing.assert_allclose(after, before * GAIN[:, None, None] + SHIFT[:, None, None], atol=1e-5)


def test_a_bias_that_was_there_is_scaled_and_shifted():
    model = _model()
    conv = model.graph[1]
    conv.resize_inputs(3)
    conv.replace_input_with(2, new_initializer(model.graph, "bias", np.arange(4, dtype=np.float32)))
    correct_conv(model.graph, conv, Correction(np.full(4, 2.0), np.ones(4)))
    np.testing.assert_array_equal(constant(conv.inputs[2]), [1, 3, 5, 7])


def test_weights_that_are_not_constants_are_unchanged():
    model = model_of("y = Conv(x, k)", "", inputs="float[N,3,5,5] x, float[4,3,1,1] k")
    correct_conv(model.graph, model.graph[0], Correction(GAIN, SHIFT))
    assert len(model.graph[0].inputs) == 2


@pytest.mark.parametrize("found", ["constant", "noise", "opposite"])
def test_a_channel_that_does_not_follow_is_only_shifted(found):
    rng = np.random.default_rng(1)
    wanted = rng.standard_normal((64, 1, 4, 4)).astype(np.float32)
    other = {"constant": np.full_like(wanted, 3), "noise": rng.standard_normal(wanted.shape), "opposite": -wanted}
    moments = Moments()
    moments.update(wanted, other[found])
    correction = moments.correction()
    assert correction.gain == [1.0]
    np.testing.assert_allclose(correction.shift, wanted.mean() - other[found].mean(), atol=1e-6)


HEAD = "p = GlobalAveragePool(x)  f = Flatten(p)  y = Gemm<transB=1>(f, w, b)"


@pytest.mark.parametrize("is_transposed", [True, False])
def test_the_classifier_takes_back_what_is_left(is_transposed):
    body = HEAD if is_transposed else HEAD.replace("<transB=1>", "")
    model = model_of(body, weights(w=(4, 3) if is_transposed else (3, 4), b=(4,)), outputs="float[N,4] y")
    (found,) = outputs_of(model)
    wanted = (found * GAIN + SHIFT).astype(np.float32)
    gemm = classifier_of(model.graph)
    correct_classifier(model.graph, gemm, [wanted], [found])
    np.testing.assert_allclose(outputs_of(model)[0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "p = GlobalAveragePool(x)  y = Flatten(p)",
        HEAD.replace("<transB=1>", "<transB=1, alpha=2.0>"),
        "p = GlobalAveragePool(x)  f = Flatten(p)  y = Gemm<transB=1>(f, k, b)",
    ],
    ids=["features", "a scaled Gemm", "weights from outside"],
)
def test_another_head_is_not_a_classifier_to_correct(body):
    inputs = "float[N,3,5,5] x, float[4,3] k"
    channels = 3 if "Gemm" not in body else 4
    model = model_of(body, weights(w=(4, 3), b=(4,)), inputs, f"float[N,{channels}] y")
    assert classifier_of(model.graph) is None

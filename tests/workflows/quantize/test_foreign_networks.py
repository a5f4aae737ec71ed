"""Networks of other exporters in INT8: every convolution, by every recipe, however the network is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import densenet_deploy
from densenet_deploy.errors import GateError
from densenet_deploy.graph.reduced_precision import reduce_precision
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from tests.foreign_networks import CONVOLUTIONS, Encoding, image, written

FLOAT_STEMS = {"onnxruntime": 0, "openvino": 0, "tensorrt": 1}  # TensorRT's recipe keeps the stem in FP16
LEAST_SQNR = 20.0  # 8 bits of a network this small give 28 to 40 dB on noise
ENCODINGS = (
    Encoding(opset=9, weights="inputs", pads=True, head="view"),
    Encoding(opset=12, norm="caffe", head="conv", names="none"),
    Encoding(opset=7, norm="mul-add", head="matmul-add", weights="computed", flat=False),
    Encoding(opset=11, norm="sub-div-mul-add", head="squeeze", ending="Softmax", shuffled=True, names="same"),
    Encoding(opset=13, head="reshape", ending="Sigmoid", weights="constants", bias_as_add=True),
)


def _quantized(model: onnx.ModelProto, encoding: Encoding, recipe: str):
    images = 4 * image(encoding, 32) - 2
    return densenet_deploy.quantize(model, images, QuantizeOptions(recipe=recipe, never_slower=False))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FLOAT_STEMS)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: f"{encoding.norm}, {encoding.head}")
def test_every_convolution_is_int8(encoding, recipe):
    report = _quantized(written(encoding), encoding, recipe).report
    assert report.layers_float == FLOAT_STEMS[recipe]
    assert report.layers_int8 == CONVOLUTIONS - FLOAT_STEMS[recipe]
    assert report.parity.sqnr_db > LEAST_SQNR
    assert any(note.startswith("operator set") for note in report.notes) == (encoding.opset < 13)


def test_16_bit_weights_are_widened_and_said():
    encoding = Encoding()
    narrow = reduce_precision(written(encoding), "fp16").model
    del narrow.metadata_props[:]
    result = _quantized(narrow, encoding, "onnxruntime")
    assert result.report.layers_int8 == CONVOLUTIONS
    assert any("widened to float32" in note for note in result.report.notes)


def test_a_transposed_convolution_is_counted_and_stays_float():
    encoding = dataclasses.replace(ENCODINGS[0], opset=13, weights="initializers")
    model = written(encoding)
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    turned = next(tensor for tensor in model.graph.initializer if tensor.name == stem.input[1])
    turned.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(turned).transpose(1, 0, 2, 3), turned.name))
    stem.op_type = "ConvTranspose"
    report = _quantized(model, encoding, "onnxruntime").report
    assert (report.layers_int8, report.layers_float) == (CONVOLUTIONS - 1, 1)
    assert report.float_layers == (stem.name,)


def test_a_network_without_a_convolution_that_can_be_int8_is_refused():
    text = """<ir_version: 8, opset_import: ["" : 13]> g (float[N,3,16,16] x) => (float[N,4] y)
        <float[3,4,1,1] k = {1,2,3,4,5,6,7,8,9,10,11,12}> {
            c = ConvTranspose(x, k)  r = Relu(c)  p = GlobalAveragePool(r)  y = Flatten(p) }"""
    with pytest.raises(GateError) as caught:
        _quantized(onnx.parser.parse_model(text), Encoding(), "onnxruntime")
    assert caught.value.exit_code == 4


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.fixture(scope="module")
def light():
    """DenseNet-121 of the model zoo with constant weights, as the onnx package holds it, an input and its output."""
    stored = onnx.TensorProto.FromString((LIGHT / "light_densenet121_output_0.pb").read_bytes())
    count = 3 * 224 * 224
    ramp = (np.arange(count) / count).astype(np.float32).reshape(1, 3, 224, 224)
    return LIGHT / "light_densenet121.onnx", ramp, numpy_helper.to_array(stored)


def _assert_same(model, ramp, expected, tolerance):
    with model.runner() as runner:
        (found,) = runner.run(ramp).values()
    np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.slow
def test_the_zoo_network_runs_simplified_and_in_fp16(light):
    path, ramp, expected = light
    _assert_same(densenet_deploy.load(path), ramp, expected, 1e-6)
    simplified = densenet_deploy.simplify(path)
    _assert_same(simplified, ramp, expected, 1e-6)
    assert {
        kind: count
        for kind, count in simplified.report.operators_after.items()
        if kind in ("Conv", "Gemm", "Mul", "Add")
    } == {"Conv": 120, "Gemm": 1}
    _assert_same(densenet_deploy.cast(path), ramp, expected, 1e-3)  # FP16 rounds by 2⁻¹¹


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FLOAT_STEMS)
def test_the_zoo_network_in_int8(light, recipe):
    path, ramp, expected = light
    images = np.random.default_rng(0).normal(size=(32, 3, 224, 224)).astype(np.float32)
    options = QuantizeOptions(recipe=recipe, never_slower=False, correct=False)
    result = densenet_deploy.quantize(path, images, options)
    assert (result.report.layers_int8, result.report.layers_float) == (120 - FLOAT_STEMS[recipe], FLOAT_STEMS[recipe])
    _assert_same(result, ramp, expected, 0.05)  # every channel is the same, and so is its error

"""The tensorrt recipe on the trained digits model: what TensorRT takes, and the same answers on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.tensorrt import engine_from_onnx
from densenet_deploy.quantization.int8_writer import backend_of
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.runtime.trt import load_tensorrt
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.fixture(scope="module")
def report(digits_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorrt")
    return quantize(digits_onnx, SAMPLES, QuantizeOptions(recipe="tensorrt"), out=folder).report


@pytest.fixture(scope="module")
def model(report) -> onnx.ModelProto:
    return onnx.load(report.onnx)


def test_the_stem_stays_half_and_the_rest_is_int8(report):
    assert report.float_layers == ("features.conv0",)
    assert report.layers_int8 == 38


def test_the_answers_stay(report):
    assert report.parity.sqnr_db > 35
    assert evaluate(report.onnx, DIGITS / "held_out").top1 >= 0.99


def in_a_session(data: bytes, feeds: dict[str, np.ndarray], level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
    """What ONNX Runtime computes with its own optimizations up to `level`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, feeds)[0]


def test_onnx_runtime_does_not_quantize_the_biases(report):
    """Its WeightBiasQuantization computes bias scales in float16, where they underflow."""
    feeds = {"input": np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)}
    data, levels = report.onnx.read_bytes(), onnxruntime.GraphOptimizationLevel
    wanted = in_a_session(data, feeds, levels.ORT_DISABLE_ALL)
    with open_runner(report.onnx, "onnxruntime", "cpu") as runner:
        given = runner.run(feeds)["logits"]
    harmed = in_a_session(data, feeds, levels.ORT_ENABLE_ALL)
    # Another order of summation moves a code here and there, which shows near 60 dB; harmed biases show near 40 dB.
    assert _sqnr_db(wanted, given) > 50 > _sqnr_db(wanted, harmed)


def _sqnr_db(wanted: np.ndarray, given: np.ndarray) -> float:
    noise = np.square(wanted.astype(np.float64) - given).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise))


def test_codes_are_signed_and_symmetric(model):
    """TensorRT reads uint8 as int8 without a word, and takes no zero point but zero."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 38 * 3  # a pair on what a convolution reads, and the restored weights
    for node in pairs:
        zero_point = stored[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()


def test_the_base_is_half_with_float_input_and_output(model):
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        onnx.TensorProto.FLOAT
    }
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert floats == []
    assert model.opset_import[0].version >= 19


def test_speed_is_said_not_to_be_measured(report):
    assert report.speed is None
    assert any("speed was not measured" in note for note in report.notes)


def test_tensorrt_rtx_builds_an_engine(report):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    built = engine_from_onnx(load_tensorrt("rtx"), report.onnx, BuildOptions("rtx", "int8"))
    assert list(built.asked.values()).count("int8") == 38
    assert b"int8" in bytes(built.plan)


def test_no_backend_measures_its_files_as_the_backend_of_tensorrt_runs_engines():
    assert backend_of("tensorrt") is None
    assert backend_of("openvino") == "openvino"

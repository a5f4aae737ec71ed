"""FP16 and BF16 files: measured, close, and float32 outside; what overflows stays FP32 or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DataError, GateError, ModelFileError, OutputExistsError, UnknownNameError
from densenet_deploy.parity.gates import Gate
from densenet_deploy.quantize.cache import CalibrationCache
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.cast import CastOptions, cast, cast_model
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"
LOUD = "features.denseblock1.denselayer2"


@pytest.fixture(scope="module")
def loud(digits_onnx, tmp_path_factory) -> Path:
    """The digits model with one bottleneck 2^15 times as large, and its reader's weights as much smaller."""
    model = onnx.load(digits_onnx)
    nodes = {node.name: node for node in model.graph.node}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name: str, factor: float) -> None:
        array = onnx.numpy_helper.to_array(stored[name]) * np.float32(factor)
        stored[name].CopyFrom(onnx.numpy_helper.from_array(array, name))

    for name in nodes[f"{LOUD}.conv1"].input[1:]:
        scale(name, 2.0**15)
    scale(nodes[f"{LOUD}.conv2"].input[1], 2.0**-15)
    path = tmp_path_factory.mktemp("loud") / "loud.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("precision", "cosine"), [("fp16", 0.9999), ("bf16", 0.999)])
def test_a_file_is_close_and_says_what_it_is(precision, cosine, digits_onnx, tmp_path, cache):
    report = cast(digits_onnx, CastOptions(precision), SAMPLES, f"{tmp_path}/", cache=cache)
    assert report.onnx == tmp_path / f"digits.{precision}.onnx"
    assert min(parity.cosine for parity in report.parities.values()) >= cosine
    assert set(report.parities) == ({"file", "rounded"} if precision == "fp16" else {"rounded"})
    assert report.float_nodes == {}
    artifact, given = Artifact.open(report.onnx), Artifact.open(digits_onnx).manifest
    assert artifact.precision == artifact.manifest.precision == precision
    assert (artifact.manifest.labels, artifact.manifest.recipe) == (given.labels, None)
    assert report.onnx.stat().st_size < 0.6 * digits_onnx.stat().st_size
    opset = onnx.load(report.onnx).opset_import[0].version
    assert artifact.manifest.opset == opset == (given.opset if precision == "fp16" else 22)
    assert any("nothing was run on a GPU" in note for note in report.notes)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_inputs_and_outputs_stay_float32(precision, tiny_onnx, tmp_path):
    report = cast(tiny_onnx, CastOptions(precision), out=f"{tmp_path}/")
    graph = onnx.load(report.onnx).graph
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert ends == {"input": onnx.TensorProto.FLOAT, "logits": onnx.TensorProto.FLOAT}
    assert any("untrained" in note for note in report.notes)


@pytest.mark.parametrize(
    ("precision", "backend"), [("fp16", "onnxruntime"), ("fp16", "openvino"), ("bf16", "openvino")]
)
def test_backends_that_read_such_files_feed_them_by_their_names(precision, backend, digits_onnx, tmp_path, cache):
    report = cast(digits_onnx, CastOptions(precision), out=f"{tmp_path}/", cache=cache)
    with open_runner(report.onnx, backend, "cpu") as runner:
        assert [spec.name for spec in (*runner.inputs, *runner.outputs)] == ["input", "logits"]
    assert evaluate(report.onnx, DIGITS / "held_out", backend=backend).top1 > 0.98


def test_what_overflows_on_the_images_stays_in_fp32_and_is_named(loud, tmp_path, cache):
    report = cast(loud, CastOptions("fp16"), SAMPLES, f"{tmp_path}/", cache=cache)
    assert (
        {f"{LOUD}.conv1", f"{LOUD}.conv2"}
        <= set(report.float_nodes)
        <= {node.name for node in onnx.load(loud).graph.node if LOUD in node.name}
    )
    assert "in calibration" in report.float_nodes[f"{LOUD}.conv1"] or "weight" in report.float_nodes[f"{LOUD}.conv1"]
    assert report.parities["rounded"].cosine >= 0.9999
    assert f"{LOUD}.conv2" in report.to_text()
    assert f"{LOUD}.conv2" in json.loads(json.dumps(report.to_json()))["float_nodes"]


def test_without_images_the_same_overflow_is_a_gate_and_no_file(loud, tmp_path):
    with pytest.raises(GateError, match=r"rounded to FP16.*NaN or infinite.*--calibration"):
        cast(loud, CastOptions("fp16"), out=f"{tmp_path}/")
    assert list(tmp_path.iterdir()) == []


def test_bf16_does_not_overflow(loud, tmp_path):
    report = cast(loud, CastOptions("bf16"), out=f"{tmp_path}/")
    assert report.float_nodes == {}
    assert report.parities["rounded"].cosine >= 0.999


def test_without_images_the_report_says_what_was_not_checked(digits_onnx, tmp_path, cache):
    notes = cast(digits_onnx, CastOptions("fp16"), out=f"{tmp_path}/a/").notes
    assert any("not checked" in note for note in notes)
    notes = cast(digits_onnx, CastOptions("fp16"), SAMPLES, f"{tmp_path}/b/", cache=cache).notes
    assert not any("not checked" in note for note in notes)


def test_the_result_can_be_had_without_a_file(tiny_onnx):
    made = cast_model(tiny_onnx, CastOptions("fp16", float_nodes=("features.conv0",)))
    assert made.half.float_nodes == ("features.conv0",)
    assert onnx.load_from_string(made.data).graph == made.half.model.graph
    assert made.manifest is not None
    assert made.manifest.precision == "fp16"


def test_a_strangers_file(torchvision_onnx, tmp_path):
    for precision in ("fp16", "bf16"):
        report = cast(torchvision_onnx, CastOptions(precision), out=f"{tmp_path}/")
        assert Artifact.open(report.onnx).manifest is None
        assert Artifact.open(report.onnx).precision == precision


def test_a_gate_that_nothing_reaches(tiny_onnx, tmp_path):
    with pytest.raises(GateError, match="cosine is"):
        cast(tiny_onnx, CastOptions("bf16", gates=(Gate("cosine", 1.0),)), out=f"{tmp_path}/")
    assert list(tmp_path.iterdir()) == []


def test_quantized_and_half_files_are_refused(tiny_onnx, tmp_path, cache):
    options = QuantizeOptions(recipe="openvino", samples=32, never_slower=False, correct=False)
    int8 = quantize(tiny_onnx, SAMPLES, options, f"{tmp_path}/", cache=cache).onnx
    half = cast(tiny_onnx, CastOptions("fp16"), out=f"{tmp_path}/").onnx
    with pytest.raises(ModelFileError, match="already quantized"):
        cast(int8, CastOptions("fp16"))
    for precision in ("fp16", "bf16"):
        with pytest.raises(ModelFileError, match="holds fp16 weights"):
            cast(half, CastOptions(precision))


def test_words_and_places_are_checked(tiny_onnx, tmp_path):
    with pytest.raises(UnknownNameError, match="fp16"):
        CastOptions("fp8")
    with pytest.raises(UnknownNameError, match=r"features\.conv0"):
        cast_model(tiny_onnx, CastOptions("fp16", float_nodes=("features.conv",)))
    with pytest.raises(DataError):
        cast_model(tiny_onnx, CastOptions("fp16"), tmp_path)
    stranger = tmp_path / "x.onnx"
    stranger.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        cast(tiny_onnx, CastOptions("fp16"), out=str(stranger))
    assert stranger.read_bytes() == b"mine"

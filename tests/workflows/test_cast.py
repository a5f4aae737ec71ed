"""FP16 and BF16 files: measured, close, and float32 outside; what overflows stays FP32 or is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import DataError, GateError, ModelFileError, OutputExistsError, UnknownNameError
from densenet_deploy.graph.reduced_precision import BF16_OPSET
from densenet_deploy.parity.gates import Gate
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.cast import CastOptions, cast, reduced_manifest
from densenet_deploy.workflows.evaluate import evaluate
from densenet_deploy.workflows.load import load
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
    report = cast(digits_onnx, CastOptions(precision), calibration=SAMPLES, out=tmp_path, cache=cache).report
    assert report.onnx == tmp_path / f"digits.{precision}.onnx"
    assert min(report.parity.cosine, report.parity_rounded.cosine) >= cosine
    assert set(report.parity_measured) == ({"file", "rounded"} if precision == "fp16" else {"rounded"})
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
    report = cast(tiny_onnx, CastOptions(precision), out=tmp_path).report
    graph = onnx.load(report.onnx).graph
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert ends == {"input": onnx.TensorProto.FLOAT, "logits": onnx.TensorProto.FLOAT}
    assert any("untrained" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "backend"), [("fp16", "onnxruntime"), ("fp16", "openvino"), ("bf16", "openvino")]
)
def test_backends_that_read_such_files_feed_them_by_their_names(precision, backend, digits_onnx, tmp_path, cache):
    report = cast(digits_onnx, CastOptions(precision), out=tmp_path, cache=cache).report
    with open_runner(report.onnx, backend, "cpu") as runner:
        assert [spec.name for spec in (*runner.inputs, *runner.outputs)] == ["input", "logits"]
    assert evaluate(report.onnx, DIGITS / "held_out", backend=backend).top1 > 0.98


def test_what_overflows_on_the_images_stays_in_fp32_and_is_named(loud, tmp_path, cache):
    report = cast(loud, CastOptions("fp16"), calibration=SAMPLES, cache=cache).report
    assert (
        {f"{LOUD}.conv1", f"{LOUD}.conv2"}
        <= set(report.float_nodes)
        <= {node.name for node in onnx.load(loud).graph.node if LOUD in node.name}
    )
    assert "in calibration" in report.float_nodes[f"{LOUD}.conv1"] or "weight" in report.float_nodes[f"{LOUD}.conv1"]
    assert report.parity_rounded.cosine >= 0.9999
    assert f"{LOUD}.conv2" in report.to_text()
    assert f"{LOUD}.conv2" in json.loads(json.dumps(report.to_json()))["float_nodes"]


def test_without_images_the_same_overflow_is_a_gate_and_no_file(loud, tmp_path):
    with pytest.raises(GateError) as caught:
        cast(loud, CastOptions("fp16"), out=tmp_path)
    assert "rounded to FP16" in caught.value.why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bf16_does_not_overflow(loud, tmp_path):
    report = cast(loud, CastOptions("bf16")).report
    assert report.float_nodes == {}
    assert report.parity_rounded.cosine >= 0.999


@pytest.mark.slow
def test_without_images_the_report_says_what_was_not_checked(digits_onnx, cache):
    notes = cast(digits_onnx).report.notes
    assert any("not checked" in note for note in notes)
    notes = cast(digits_onnx, calibration=SAMPLES, cache=cache).report.notes
    assert not any("not checked" in note for note in notes)


def test_the_result_can_be_had_without_a_file(tiny_onnx):
    made = cast(tiny_onnx, CastOptions("fp16", float_nodes=("features.conv0",)))
    assert (made.path, made.report.onnx) == (None, None)
    assert set(made.report.float_nodes) == {"features.conv0"}
    assert onnx.load_from_string(made.to_bytes()).graph == made.onnx.graph
    assert (made.precision, made.manifest.precision) == ("fp16", "fp16")


def test_a_checkpoint_is_exported_on_the_way(checkpoint):
    assert cast(checkpoint).manifest.weights.source == "tiny.pth"


def test_a_third_party_file(torchvision_onnx, tmp_path):
    for precision in ("fp16", "bf16"):
        report = cast(torchvision_onnx, CastOptions(precision), out=tmp_path).report
        manifest = Artifact.open(report.onnx).manifest
        assert (manifest.variant, manifest.precision) == ("third-party", precision)
        assert Artifact.open(report.onnx).precision == precision


def test_a_gate_that_nothing_reaches(tiny_onnx, tmp_path):
    with pytest.raises(GateError):
        cast(tiny_onnx, CastOptions("bf16", gates=(Gate("cosine", 1.0),)), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_quantized_file_is_refused(precision, tiny_onnx, tmp_path, cache):
    options = QuantizeOptions(recipe="openvino", samples=32, never_slower=False, correct=False)
    int8 = quantize(tiny_onnx, SAMPLES, options, out=tmp_path, cache=cache)
    with pytest.raises(ModelFileError) as caught:
        cast(int8, CastOptions(precision))
    assert caught.value.subject == str(int8.path)
    assert "quantized" in caught.value.why


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_file_in_that_precision_is_refused_with_what_else_can_be_done(precision, tiny_onnx, tmp_path):
    narrow = cast(tiny_onnx, CastOptions(precision), out=tmp_path / "a.onnx")
    with pytest.raises(ModelFileError) as caught:
        cast(tmp_path / "a.onnx", CastOptions(precision), out=tmp_path / "b.onnx")
    assert (caught.value.subject, caught.value.why) == (str(narrow.path), f"is already in {precision}")
    assert "use it as it is" in caught.value.fix
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("given", "asked"), [("fp16", "bf16"), ("bf16", "fp16")])
def test_the_other_16_bit_precision_is_cast_from_the_widened_weights(given, asked, digits_onnx, tmp_path):
    narrow = cast(digits_onnx, CastOptions(given), out=tmp_path / f"digits.{given}.onnx")
    made = cast(narrow.path, CastOptions(asked), out=tmp_path)
    assert made.path == tmp_path / f"digits.{asked}.onnx"
    assert Artifact.open(made.path).precision == made.manifest.precision == asked
    assert made.manifest.labels == narrow.manifest.labels
    assert any(f"its {given} weights were widened to float32 first" in note for note in made.report.notes)
    assert made.report.parity_rounded.cosine >= 0.999


def test_words_and_places_are_checked(tiny_onnx, tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        CastOptions("fp8")
    assert caught.value.subject == "fp8"
    with pytest.raises(UnknownNameError) as caught:
        cast(tiny_onnx, CastOptions("fp16", float_nodes=("features.conv",)))
    assert caught.value.subject == "features.conv"
    with pytest.raises(DataError):
        cast(tiny_onnx, calibration=tmp_path)
    foreign = tmp_path / "x.onnx"
    foreign.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        cast(tiny_onnx, out=foreign)
    assert foreign.read_bytes() == b"mine"


def test_the_facts_of_a_16_bit_file_are_those_of_its_graph(tiny_onnx):
    known = dataclasses.replace(load(tiny_onnx).manifest, opset=16)
    half = reduced_manifest(known, "fp16")
    assert half == dataclasses.replace(known, precision="fp16")
    assert reduced_manifest(known, "bf16") == dataclasses.replace(known, precision="bf16", opset=BF16_OPSET)
    later = dataclasses.replace(known, opset=BF16_OPSET + 1)
    assert reduced_manifest(later, "bf16").opset == BF16_OPSET + 1
    assert reduced_manifest(dataclasses.replace(known, opset=None), "bf16").opset is None
    assert reduced_manifest(None, "fp16") is None

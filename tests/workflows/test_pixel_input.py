"""Models that take pixels, through every workflow: the same answers, facts that say it, and no float step in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from PIL import Image

from densenet_deploy.bench.candidate import _noise
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.errors import FeedError, ModelFileError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.build_engine import dry_run
from densenet_deploy.workflows.build_request import BuildRequest
from densenet_deploy.workflows.cast import cast
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.inspect.operator_profile import profile_model
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.predict import predict
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.sensitivity import SensitivityOptions, sensitivity
from densenet_deploy.workflows.simplify import simplify

pytestmark = pytest.mark.filterwarnings("ignore::densenet_deploy.model.UntrainedWeightsWarning")
FRONT = ["Cast", "Transpose", "Mul", "Add"]


@pytest.fixture(scope="module")
def pixel_model(tiny_onnx) -> Model:
    return export(tiny_onnx, ExportOptions(input="uint8"))


@pytest.fixture(scope="module")
def pixel_file(pixel_model, tmp_path_factory):
    return pixel_model.save(tmp_path_factory.mktemp("pixels") / "tiny.uint8.onnx")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photographs of a kind: smooth colors, and edges."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(40):
        rough = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        rough.resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def first_nodes(model: Model, count: int) -> list[str]:
    return [node.op_type for node in model.onnx.graph.node][:count]


def test_the_facts_say_what_the_graph_takes(pixel_model, pixel_file):
    for model in (pixel_model, load(pixel_file)):
        stated = model.manifest.preprocessing
        assert (stated.dtype, stated.layout, stated.input_shape, stated.shape) == (
            "uint8",
            "NHWC",
            (32, 32, 3),
            (3, 32, 32),
        )
    facts = pixel_model.report.to_json()["input"]
    assert (facts["dtype"], facts["layout"], facts["shape"]) == ("uint8", "NHWC", [3, 32, 32])
    assert "32x32x3 uint8" in str(pixel_model.report)
    assert first_nodes(pixel_model, 4) == FRONT
    assert pixel_model.report.parity.sqnr_db > 100


def test_a_checkpoint_is_exported_with_pixels_too(pixel_model):
    made = export("cifar-10-4", ExportOptions(input="uint8", batch=2), image_size=16)
    with made.runner() as runner:
        assert str(runner.inputs[0]) == "input (2, 16, 16, 3) uint8"
    assert made.report.parity.sqnr_db > 100


def test_float32_is_given_back(pixel_file, tiny_onnx):
    again = export(pixel_file, ExportOptions(input="float32"))
    assert again.manifest.preprocessing == load(tiny_onnx).manifest.preprocessing
    assert first_nodes(again, 1) == ["Conv"]
    assert export(pixel_file).manifest.preprocessing.dtype == "uint8"  # kept where nothing is asked for


def test_the_answers_are_those_of_the_float_model(pixel_file, tiny_onnx, images):
    with Classifier.open(tiny_onnx) as plain, Classifier.open(pixel_file) as pixels:
        assert pixels.preprocessing.dtype == "uint8"
        for path in sorted(images.iterdir())[:4]:
            for source in (path, Image.open(path), np.asarray(Image.open(path))):
                expected, found = plain(source, top_k=10), pixels(source, top_k=10)
                np.testing.assert_allclose(
                    [score.score for score in found.top], [score.score for score in expected.top], rtol=1e-4
                )
    report = predict(pixel_file, images)
    assert report.input.dtype == "uint8"
    assert [one.top[0].index for one in report.predictions] == [
        one.top[0].index for one in predict(tiny_onnx, images).predictions
    ]


def test_a_classifier_prepares_what_its_model_takes_whatever_it_is_given(pixel_file, images):
    with Classifier.open(pixel_file) as pixels:
        stated = pixels.preprocessing
    plain = type(stated)(stated.image_size, stated.resize, stated.mean, stated.std)
    with Classifier.open(pixel_file, preprocessing=plain) as pixels:
        assert pixels.preprocessing == stated


def test_normalized_values_are_refused_with_what_to_feed(pixel_file):
    with open_runner(pixel_file) as runner, pytest.raises(FeedError) as caught:
        runner.run(np.zeros((1, 3, 32, 32), np.float32))
    assert "pixels" in caught.value.fix


@pytest.mark.parametrize("is_reference", [True, False])
def test_a_comparison_feeds_both_the_same_pixels(pixel_file, tiny_onnx, images, is_reference):
    pair = (pixel_file, tiny_onnx) if is_reference else (tiny_onnx, pixel_file)
    for data in (None, images):
        report = compare(*pair, data)
        assert report.passed
        assert report.parity.sqnr_db > 100  # noise that is not pixels would leave 50 dB or less
        assert any("pixels were normalized" in note for note in report.notes)
        assert any("rounded" in note for note in report.notes) == (data is None)
    assert compare(tiny_onnx, tiny_onnx).notes == compare(tiny_onnx, tiny_onnx, images).notes


def test_other_numbers_than_those_in_the_graph_cannot_be_stated(pixel_file):
    for name in ("mean", "std"):
        with pytest.raises(UsageError) as caught:
            load(pixel_file, **{name: 0.5})
        assert caught.value.subject == name
    kept = load(pixel_file, mean=load(pixel_file).manifest.preprocessing.mean, resize="none")
    assert kept.manifest.preprocessing.resize == "none"


def test_simplify_and_cast_keep_the_pixels(pixel_file):
    for made in (simplify(pixel_file), cast(pixel_file)):
        assert made.manifest.preprocessing.dtype == "uint8"
        assert first_nodes(made, 4) == FRONT
        assert made.report.parity.sqnr_db > 45
        with made.runner() as runner:
            assert runner.inputs[0].dtype == np.uint8


STARTS = {
    "onnxruntime": ["Transpose", "Pad", "QLinearConv"],
    "openvino": ["Transpose", "Pad", "DequantizeLinear"],
    "tensorrt": [*FRONT, "Cast", "Conv"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STARTS)
def test_int8_reads_the_pixels_without_a_float_step(pixel_file, tiny_onnx, images, recipe):
    options = QuantizeOptions(recipe=recipe, never_slower=False)
    made, plain = (quantize(path, images, options) for path in (pixel_file, tiny_onnx))
    assert first_nodes(made, len(STARTS[recipe])) == STARTS[recipe]
    assert made.manifest.preprocessing.dtype == made.report.input.dtype == "uint8"
    assert (made.report.layers_int8, made.report.layers_float) == (plain.report.layers_int8, plain.report.layers_float)
    # the first layer alone decides; among networks of 8 filters chance moves the rest by 2 dB either way
    assert made.report.parity.sqnr_db > plain.report.parity.sqnr_db - 3
    if recipe != "tensorrt":
        against_float = compare(tiny_onnx, made, images, CompareOptions(candidate_backend=recipe, samples=40))
        assert against_float.parity.sqnr_db > made.report.parity.sqnr_db - 3


def test_a_float_stem_reads_the_pixels_too(pixel_file, images):
    stem = "features.conv0"
    options = QuantizeOptions(recipe="onnxruntime", never_slower=False, float_layers=(stem,))
    made = quantize(pixel_file, images, options)
    assert made.report.float_layers == (stem,)
    assert first_nodes(made, 6) == [*FRONT, "Pad", "Conv"]


@pytest.mark.slow
def test_sensitivity_of_a_model_of_pixels(pixel_file, images):
    options = SensitivityOptions(quantization=QuantizeOptions(recipe="onnxruntime"))
    assert sensitivity(pixel_file, images, options).int8.sqnr_db > 20


def test_random_feeds_are_pixels(pixel_file):
    with open_runner(pixel_file) as runner:
        (feed,) = _noise(runner, 2).values()
    assert (feed.dtype, feed.shape, feed.min() < 5, feed.max() > 250) == (np.uint8, (2, 32, 32, 3), True, True)
    assert profile_model(pixel_file, batch=3).batch == 3


def test_a_tensorrt_engine_is_asked_for_with_the_layout_of_pixels(pixel_file, tmp_path):
    request = BuildRequest.of(str(pixel_file), BuildOptions("rtx", "fp32"), None, {}, out=tmp_path / "tiny.engine")
    command = dry_run(request).command
    assert "input:1x32x32x3" in command


def foreign(body: str, kind: str = "uint8[N,32,32,3]") -> onnx.ModelProto:
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g ({kind} x) => (float[N,10] y)
        <float h = {{127.5}}, float[10,3,3,3] w = {{{", ".join(["0.1"] * 270)}}}>
        {{ {body}  v = Conv (m, w)  p = GlobalAveragePool (v)  y = Flatten (p) }}"""
    return onnx.parser.parse_model(text)


def test_a_foreign_graph_states_its_own_normalization():
    body = "c = Cast <to = 1> (x)  d = Sub (c, h)  e = Div (d, h)  m = Transpose <perm = [0, 3, 1, 2]> (e)"
    model = load(foreign(body))
    stated = model.manifest.preprocessing
    assert stated.dtype == "uint8"
    assert (stated.mean, stated.std) == (pytest.approx((0.5,) * 3), pytest.approx((0.5,) * 3))
    assert not {"mean", "std", "image_size"} & set(model.manifest.assumed)


def test_a_foreign_graph_with_channels_first_is_turned():
    model = load(foreign("c = Cast <to = 1> (x)  m = Div (c, h)", "uint8[N,3,32,32]"))
    with model.runner() as runner:
        assert runner.inputs[0].shape == (None, 32, 32, 3)
    assert any("(N, H, W, C)" in note for note in model.notes)


def test_a_foreign_graph_that_is_unclear_runs_and_is_not_quantized(images):
    body = "r = Max (x, x)  c = Cast <to = 1> (r)  m = Transpose <perm = [0, 3, 1, 2]> (c)"
    model = load(foreign(body))
    assert {"mean", "std"} <= set(model.manifest.assumed)
    with pytest.raises(ModelFileError) as caught:
        quantize(model, images, QuantizeOptions(never_slower=False))
    assert "begins with Max" in caught.value.why

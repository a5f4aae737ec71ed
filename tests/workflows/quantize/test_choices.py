"""What quantize does beyond writing INT8: recipe files, layers left float by name, for accuracy and for speed."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from densenet_deploy.bench.rounds import Interval
from densenet_deploy.errors import GateError, InputError, UnknownNameError, UsageError
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.workflows.quantize import layer_choice
from densenet_deploy.workflows.quantize.layer_choice import stage_of
from densenet_deploy.workflows.quantize.options import QuantizeOptions, load_recipe
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS
from tests.graph.passes.networks import make_network

ROOT = DIGITS.parents[1]
SAMPLES = ROOT / "calibration" / "samples"
FILES = sorted((ROOT / "calibration" / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


def _quantized(model, folder, cache, **options):
    known = {"recipe": "onnxruntime", "never_slower": False, "samples": 32}
    return quantize(model, SAMPLES, QuantizeOptions(**(known | options)), out=folder, cache=cache, explain=True).report


def test_named_layers_stay_float(tiny_onnx, tmp_path, cache):
    report = _quantized(tiny_onnx, tmp_path, cache, float_layers=("features.conv0",))
    assert report.float_layers == ("features.conv0",)
    assert "features.conv0: float, asked for" in "\n".join(report.explanation)
    assert len(report.to_json()["explanation"]) == 10


def test_a_layer_that_is_not_there_is_named(tiny_onnx, tmp_path, cache):
    with pytest.raises(UnknownNameError):
        _quantized(tiny_onnx, tmp_path, cache, float_layers=("features.conv",))


def test_layers_stay_float_until_the_sqnr_is_reached(tiny_onnx, tmp_path, cache):
    wanted = _quantized(tiny_onnx, tmp_path / "all", cache, recipe="openvino").parity.sqnr_db + 1
    report = _quantized(tiny_onnx, tmp_path / "some", cache, recipe="openvino", min_sqnr=wanted)
    assert report.parity.sqnr_db >= wanted
    assert 0 < report.layers_float < 10


@pytest.mark.slow
def test_no_accuracy_may_be_lost_on_class_folders(digits_onnx, tmp_path, cache):
    report = _quantized(digits_onnx, tmp_path, cache, max_drop=0.0)
    assert report.parity.top1_agreement >= 0.98


def test_what_no_layer_can_give_is_a_gate(tiny_onnx, tmp_path, cache):
    with pytest.raises(GateError):
        _quantized(tiny_onnx, tmp_path, cache, min_sqnr=200.0)
    assert list(tmp_path.iterdir()) == []


def _fake_speeds(monkeypatch, seconds: dict[str, float]) -> None:
    """Let every candidate take the time that `seconds` says, by name; others take that of `int8`."""

    class Result:
        def speedup(self, name, over):
            ratio = self.latency_ms(over) / self.latency_ms(name)
            return Interval(ratio, ratio, ratio)

        def latency_ms(self, name):
            return seconds.get(name, seconds["int8"])

    monkeypatch.setattr(layer_choice, "compare_speed", lambda *_, **__: Result())


def test_a_block_that_is_faster_in_float_is_put_back(tiny_onnx, tmp_path, cache, monkeypatch):
    _fake_speeds(monkeypatch, {"float": 3.0, "int8": 2.0, "features.denseblock2": 1.5})
    report = _quantized(tiny_onnx, tmp_path, cache, never_slower=True)
    assert report.speed.put_back == ("features.denseblock2",)
    assert report.layers_float == 4
    assert all(stage_of(name) == "features.denseblock2" for name in report.float_layers)
    assert "faster in float" in "\n".join(report.explanation)


def test_int8_that_gains_nothing_is_not_shipped(tiny_onnx, tmp_path, cache, monkeypatch):
    _fake_speeds(monkeypatch, {"float": 1.0, "int8": 2.0})
    with pytest.raises(GateError) as caught:
        _quantized(tiny_onnx, tmp_path, cache, never_slower=True)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_speed_is_really_measured(tiny_onnx, tmp_path, cache):
    """Which is faster depends on the machine: where INT8 gains nothing, the refusal states the measured ratio."""
    try:
        speedup = _quantized(tiny_onnx, tmp_path, cache, never_slower=True).to_json()["speed"]["speedup"]
    except GateError as refused:
        speedup = float(re.findall(r"\((\d+\.\d+) x float\)", str(refused))[0])
    assert 0 < speedup < 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_shipped_recipe_files_load(path):
    assert load_recipe(path, {}).recipe in ("onnxruntime", "openvino", "tensorrt", "auto")


def test_recipe_files_are_shipped():
    assert FILES


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('base = "onnxruntime"\nobservr = "mse"', UnknownNameError, "observer"),
        ('observer = "mse"', UsageError, "base"),
        ('base = "onnxruntime"\nalpha = "half"', UsageError, "alpha"),
        ('base = "onnxruntime"\nsamples = 1.5', UsageError, "samples"),
        ('base = "onnxruntime"\nalpha = 2.0', UsageError, "alpha"),
        ("base = ", UsageError, "TOML"),
        ('base = "other.toml"', UsageError, "built-in"),
    ],
)
def test_an_invalid_recipe_file(tmp_path, text, error, says):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        load_recipe(path, {})
    assert says in str(caught.value)


def test_the_command_line_counts_more_than_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('base = "openvino"\nalpha = 1\nobserver = "mse"\nfloat-layers = ["features.conv0"]\n')
    options = load_recipe(path, {"observer": "entropy"})
    assert (options.recipe, options.alpha, options.observer) == ("openvino", 1.0, "entropy")
    assert options.float_layers == ("features.conv0",)


def test_a_recipe_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError):
        load_recipe(tmp_path / "none.toml", {})


def test_two_demands_are_one_too_many():
    with pytest.raises(UsageError):
        QuantizeOptions(max_drop=1.0, min_sqnr=30.0)


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_a_third_party_graph_without_stored_shapes(recipe, tmp_path, cache):
    model = tmp_path / "third_party.onnx"
    model.write_bytes(make_network("torchvision").proto.SerializeToString())
    report = _quantized(model, tmp_path, cache, recipe=recipe, samples=32)
    assert report.layers_int8 > 10
    assert report.parity.sqnr_db > 20


def test_a_graph_of_an_old_operator_set_and_a_fixed_batch(tmp_path, cache):
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    text = """<ir_version: 7, opset_import: ["" : 12]> old (float[4,3,32,32] image) => (float[4,8] scores) {
        made = Conv <pads = [1,1,1,1]> (image, weights)
        pooled = GlobalAveragePool(made)
        scores = Flatten <axis = 1> (pooled)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    (tmp_path / "old.onnx").write_bytes(model.SerializeToString())
    report = _quantized(tmp_path / "old.onnx", tmp_path, cache, samples=32)
    assert report.layers_int8 == 1
    assert any(note.endswith("the graph of operator set 12 was lifted to 13") for note in report.notes)

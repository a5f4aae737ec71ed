"""What quantize reads back before it writes a file: faults stop it, and what stayed float unasked is counted."""

from __future__ import annotations

import json

import onnx
import pytest

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.quantization.checks import check_quantized, convolutions
from densenet_deploy.quantization.recipes.recipe import Recipe, recipes
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"
RECIPES = ("onnxruntime", "openvino", "tensorrt")
SOME = ("features.conv0", "features.denseblock1.denselayer1.conv2", "features.transition1.conv")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


def _quantized(model, folder, cache, **options):
    known = {"samples": 32, "never_slower": False}
    return quantize(model, SAMPLES, QuantizeOptions(**(known | options)), out=folder, cache=cache, explain=True).report


@pytest.mark.parametrize("float_layers", [(), SOME], ids=["all", "some"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_written_is_sound(recipe, float_layers, tiny_onnx, tmp_path, cache):
    report = _quantized(tiny_onnx, tmp_path, cache, recipe=recipe, float_layers=float_layers)
    model = onnx.load(report.onnx)
    assert check_quantized(model, recipe) == ()
    assert convolutions(model).float == report.float_layers
    assert "check" in report.stages


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_third_party_graph_of_opset_17_is_sound(recipe, torchvision_onnx, tmp_path, cache):
    report = _quantized(torchvision_onnx, tmp_path, cache, recipe=recipe)
    assert check_quantized(onnx.load(report.onnx), recipe) == ()


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
def test_no_layer_that_was_asked_for_int8_stays_float(recipe, tiny_onnx, tmp_path, cache):
    report = _quantized(tiny_onnx, tmp_path, cache, recipe=recipe, float_layers=SOME)
    assert set(report.float_layers) == set(SOME)
    assert report.float_unasked == ()
    assert "every layer that was to be INT8" in report.to_text()


def test_what_a_recipe_keeps_is_counted_and_named(tiny_onnx, tmp_path, cache):
    """The tensorrt recipe keeps the stem in float16."""
    report = _quantized(tiny_onnx, tmp_path, cache, recipe="tensorrt", float_layers=(SOME[1],))
    assert "features.conv0" in report.float_unasked
    assert SOME[1] not in report.float_unasked
    assert f"{len(report.float_unasked)} layer" in report.to_text()
    answer = json.loads(json.dumps(report.to_json()))
    assert answer["float_unasked"] == list(report.float_unasked)
    assert answer["layers_float"] == len(report.float_layers)
    assert "features.conv0: float, the recipe tensorrt keeps it" in answer["explanation"]


class _Careless(Recipe):
    """Writes a pair of which only rounding is left: what reads it takes floats."""

    def simulate(self, model, types, options):
        self.write(model, types, options)

    def write(self, model, types, options):
        import numpy as np
        import onnx_ir as ir

        from densenet_deploy.graph.nodes import new_initializer

        source = model.graph[0].outputs[0]
        scale = new_initializer(model.graph, "careless.scale", np.float32(0.1))
        quantize = ir.node("QuantizeLinear", [source, scale], name="careless")
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale], name="restored")
        after = ir.node("Neg", [dequantize.outputs[0]], name="after")
        quantize.outputs[0].name, dequantize.outputs[0].name, after.outputs[0].name = "c", "r", "a"
        model.graph.insert_after(model.graph[0], [quantize, dequantize, after])
        readers = [use for use in source.uses() if use.node is not quantize]
        for reader, index in readers:
            reader.replace_input_with(index, after.outputs[0])
        return ()


def test_a_fault_in_our_own_graph_stops_everything(tiny_onnx, tmp_path, cache):
    """A recipe that is careless is registered for this test alone; nothing of ours is replaced."""
    with recipes.restored():
        recipes.register("careless")(_Careless)
        with pytest.raises(DensenetDeployError) as caught:
            _quantized(tiny_onnx, tmp_path, cache, recipe="careless", correct=False)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []

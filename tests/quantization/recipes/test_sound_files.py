"""The output of every recipe is sound, whichever of its layers stay float."""

from __future__ import annotations

import functools

import onnx
import pytest

from densenet_deploy.quantization.checks import check_quantized, convolutions, require_sound
from densenet_deploy.quantization.int8_writer import Int8Writer
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import RecipeOptions
from tests.graph.passes.networks import make_network, run

pytestmark = pytest.mark.slow

RECIPES = ("onnxruntime", "openvino", "tensorrt")


@functools.cache
def writer(recipe: str) -> Int8Writer:
    """A small network with a stem, two dense blocks and a transition, ready for `recipe`."""
    network = make_network("classifier")
    values = run(network.proto, network.images) | {network.proto.graph.input[0].name: network.images}
    ranges = {n: ChannelRanges(v.min((0, 2, 3)), v.max((0, 2, 3))) for n, v in values.items() if v.ndim == 4}
    return Int8Writer(network.model(), ranges, recipe, RecipeOptions())


@pytest.mark.parametrize("recipe", RECIPES)
def test_files_of_a_recipe_have_no_faults(recipe):
    require_sound(onnx.load_from_string(writer(recipe).write().data), recipe)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kept", [(1,), (2, 3), (0, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)], ids=str)
def test_files_of_a_recipe_have_no_faults_with_any_layers_left_float(recipe, kept):
    layers = writer(recipe).layers
    file = writer(recipe).write([layers[index] for index in kept])
    model = onnx.load_from_string(file.data)
    assert check_quantized(model, recipe) == ()
    assert convolutions(model).float == file.layers_float


@pytest.mark.parametrize("recipe", ["openvino", "tensorrt"])
def test_convolutions_with_quantized_data_and_weights_are_counted_as_integer(recipe):
    file = writer(recipe).write()
    found = convolutions(onnx.load_from_string(file.data))
    assert (found.integer, found.float) == (file.layers_int8, file.layers_float)
    assert len(found.integer) >= len(writer(recipe).layers) - 1

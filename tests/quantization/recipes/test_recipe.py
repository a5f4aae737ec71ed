"""What the recipes share: their registry, the defaults of their options, and weights behind a DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.errors import UnknownNameError
from densenet_deploy.quantization.recipes.recipe import (
    Recipe,
    RecipeOptions,
    read_dequantized_weights,
    recipes,
    source_of,
)
from tests.quantization.recipes.written import constant_of, graph_of, lines


def test_the_three_recipes_are_found():
    assert recipes.names() == ("onnxruntime", "openvino", "tensorrt")
    with pytest.raises(UnknownNameError) as caught:
        recipes.get("openvin")
    assert (caught.value.subject, caught.value.why) == ("openvin", "unknown recipe")


def test_nothing_is_asked_for_unless_it_is_said():
    assert RecipeOptions() == RecipeOptions(per_channel=True, weight_bits=8, float_nodes=(), quantize_bus=False)
    assert (Recipe.passes, Recipe.stores_bus) == ((), False)


@pytest.mark.parametrize(
    ("scales", "shown"), [(np.float32([0.5, 0.25]), "f32[2], i8[2]"), (np.float32(0.5), "f32:0.5, i8:0")]
)
def test_weights_are_read_through_a_dequantize_linear_before_their_convolution(scales, shown):
    model = graph_of("a = Neg(x)  b = Conv(a, w)  y = Conv(b, w)")
    graph, integers = model.graph, np.arange(-2, 2, dtype=np.int8).reshape(2, 2, 1, 1)
    for conv in (graph.node(1), graph.node(2)):
        read_dequantized_weights(graph, conv, integers, scales, [ir.AttrInt64("axis", 0)])
    assert lines(model) == [
        "a = Neg(x)",
        f"w:quantized = DequantizeLinear(i8[2,2,1,1], {shown}) axis=0",
        "b = Conv(a, w:quantized)",
        f"w:quantized_ = DequantizeLinear(i8[2,2,1,1], {shown}) axis=0",
        "y = Conv(b, w:quantized_)",
    ]
    assert constant_of(model, "w.codes") == integers.tolist()
    assert constant_of(model, "w.scale") == scales.tolist()
    assert constant_of(model, "w.zero_point") == np.zeros(scales.shape).tolist()


def test_the_source_of_a_node_is_its_first_input():
    model = graph_of("y = Conv(x, w)")
    assert source_of(model.graph.node(0)) is model.graph.inputs[0]

"""The output of recipes has no faults; every fault made by hand is found and named."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.quantization.checks import Finding, check_quantized, convolutions, require_float, require_sound
from densenet_deploy.quantization.int8_writer import Int8Writer
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import RecipeOptions
from tests.graph.passes.networks import make_network, run

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


SOUND = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float s = {0.1}, int8 z = {0}, int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] ws = {0.1, 0.2}, int8[2] wz = {0, 0},
 float[2] b = {0.5, 1.5}>
{
    r = Relu (x)
    q = QuantizeLinear (r, s, z)
    d = DequantizeLinear (q, s, z)
    k = DequantizeLinear <axis: int = 0> (w, ws, wz)
    y = Conv (d, k, b)
}
"""

QLINEAR = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
<float s = {0.1}, uint8 z = {3}, int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float ws = {0.1}, int8 wz = {0},
 int32[2] b = {2000000000, -5}>
{
    q = QuantizeLinear (x, s, z)
    c = QLinearConv (q, s, z, w, ws, wz, s, z, b)
    y = DequantizeLinear (c, s, z)
}
"""


def changed(text: str, *changes: tuple[str, str]) -> onnx.ModelProto:
    """The model of `text` after each first text was replaced by the second."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


def findings(model: onnx.ModelProto, recipe: str = "openvino") -> dict[str, str]:
    """The sentences by node."""
    return {finding.node: finding.sentence for finding in check_quantized(model, recipe)}


def test_sound_graphs_have_no_findings():
    assert findings(changed(SOUND), "tensorrt") == {}
    assert findings(changed(QLINEAR), "onnxruntime") == {}


@pytest.mark.parametrize(
    "between", ["n = BatchNormalization (d, b, b, b, ws)", "n = Mul (d, s)"], ids=["before a norm", "before a factor"]
)
def test_a_pair_that_reaches_nothing_integer_is_found(between):
    """The node between computes in float, so the pair only rounds."""
    model = changed(SOUND, ("k = Deq", between + "\n    k = Deq"), ("Conv (d,", "Conv (n,"))
    found = findings(model)
    assert list(found) == ["q"]
    assert "only rounds" in found["q"]


def test_a_pair_before_the_output_is_found():
    pair = "c = Conv (d, k, b)\n    p = QuantizeLinear (c, s, z)\n    y = DequantizeLinear (p, s, z)"
    assert list(findings(changed(SOUND, ("y = Conv (d, k, b)", pair)))) == ["p"]


def test_quantized_outputs_have_an_effect():
    outputs = ("float[1, 2, 4, 4] y)", "float[1, 2, 4, 4] y, int8[1, 2, 4, 4] p)")
    assert findings(changed(SOUND, outputs, ("(d, k, b)", "(d, k, b)\n    p = QuantizeLinear (y, s, z)"))) == {}


WEIGHTS = "    k = DequantizeLinear <axis: int = 0> (w, ws, wz)\n"


@pytest.mark.parametrize("reader", ["Concat <axis: int = 1> (m, m)", "MaxPool <kernel_shape: ints = [1, 1]> (m)"])
def test_a_pair_before_a_node_that_moves_quantized_values_has_an_effect(reader):
    model = changed(SOUND, (WEIGHTS, "    m = Relu (d)\n"), ("y = Conv (d, k, b)", f"y = {reader}"))
    assert findings(model) == {}


def test_a_dequantizer_that_nothing_reads_is_found():
    model = changed(SOUND, ("y = Conv", "u = DequantizeLinear (q, s, z)\n    y = Conv"))
    assert list(findings(model)) == ["u"]


AGAIN = ("y = Conv (d,", "q2 = QuantizeLinear (d, s2, z2)\n    d2 = DequantizeLinear (q2, s2, z2)\n    y = Conv (d2,")


def test_quantizing_again_is_found():
    model = changed(SOUND, AGAIN, ("<float s", "<float s2 = {0.1}, int8 z2 = {0}, float s"))
    found = findings(model)
    assert list(found) == ["q2"]
    assert "d has just dequantized" in found["q2"]


@pytest.mark.parametrize("other", ["float s2 = {0.2}, int8 z2 = {0}", "float s2 = {0.1}, int8 z2 = {1}"])
def test_quantizing_to_another_type_is_not_a_repetition(other):
    assert findings(changed(SOUND, AGAIN, ("<float s", f"<{other}, float s"))) == {}


def test_quantizing_to_another_element_type_is_not_a_repetition():
    """uint8 around 0 after int8 around 0 cuts negative values off."""
    assert findings(changed(SOUND, AGAIN, ("<float s", "<float s2 = {0.1}, uint8 z2 = {0}, float s"))) == {}


def test_a_scale_per_channel_of_an_activation_is_found():
    model = changed(SOUND, ("QuantizeLinear (r, s, z)", "QuantizeLinear <axis: int = 1> (r, ws, wz)"))
    found = findings(model)
    assert list(found) == ["q"]
    assert "2 scales" in found["q"]


def test_a_scale_per_channel_of_weights_quantized_in_the_file_is_none():
    weights = "float[2, 2, 1, 1] v = {1, 2, 3, 4}, float s"
    in_file = "w = QuantizeLinear <axis: int = 0> (v, ws, wz)\n    k = Deq"
    model = changed(
        SOUND, ("int8[2, 2, 1, 1] w = {1, 2, 3, 4}, ", ""), ("<float s", f"<{weights}"), ("k = Deq", in_file)
    )
    assert findings(model, "tensorrt") == {}


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf, np.nan])
@pytest.mark.parametrize(
    ("text", "name", "node"), [(SOUND, "ws", "k"), (QLINEAR, "ws", "c")], ids=["Q/DQ", "QLinearConv"]
)
def test_a_scale_that_is_not_finite_and_positive_is_found(text, name, node, scale):
    model = changed(text)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    numbers = np.array(onnx.numpy_helper.to_array(tensor))
    numbers.flat[0] = scale
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, name))
    found = findings(model)
    assert list(found) == [node]
    assert name in found[node]


@pytest.mark.parametrize("limit", [2**31 - 1, -(2**31)])
def test_a_bias_at_the_limits_is_found(limit):
    found = findings(changed(QLINEAR, ("2000000000", str(limit))))
    assert list(found) == ["c"]
    assert "clipped" in found["c"]


UINT8 = [("int8 z = {0}", "uint8 z = {0}")]
SHIFTED = [("int8 z = {0}", "int8 z = {7}")]
INTEGER_BIAS = [
    ("float[2] b = {0.5, 1.5}", "int32[2] i = {5, 15}"),
    ("y = Conv", "b = DequantizeLinear (i, s)\n    y = Conv"),
]
ONE_SIDED = [
    ("w = {1, 2, 3, 4}", "u = {1, 2, 3, 4}, float[2, 2, 1, 1] k = {1, 2, 3, 4}"),
    (WEIGHTS, ""),
]


@pytest.mark.parametrize(
    ("changes", "nodes", "word"),
    [
        (UINT8, ["q", "d"], "uint8"),
        (SHIFTED, ["q", "d"], "zero point"),
        (INTEGER_BIAS, ["b"], "int32"),
        (ONE_SIDED, ["y"], "not both"),
    ],
    ids=["uint8", "zero point", "int32 bias", "one side"],
)
def test_faults_for_tensorrt_are_found_only_there(changes, nodes, word):
    model = changed(SOUND, *changes)
    found = findings(model, "tensorrt")
    assert list(found) == nodes
    assert all(word in sentence for sentence in found.values())
    assert findings(model, "openvino") == {}


def test_a_quantizer_without_zero_point_makes_uint8():
    model = changed(
        SOUND,
        ("QuantizeLinear (r, s, z)", "QuantizeLinear (r, s)"),
        ("DequantizeLinear (q, s, z)", "DequantizeLinear (q, s)"),
    )
    assert list(findings(model, "tensorrt")) == ["q", "d"]


def test_a_convolution_with_one_quantized_side_counts_as_float():
    assert convolutions(changed(SOUND)).integer == ("y",)
    assert convolutions(changed(SOUND, *ONE_SIDED)).float == ("y",)
    assert convolutions(changed(QLINEAR)).integer == ("c",)


def test_a_fault_of_ours_is_refused_by_name():
    model = changed(SOUND, *UINT8)
    with pytest.raises(DensenetDeployError) as caught:
        require_sound(model, "tensorrt")
    assert caught.value.exit_code == 1
    assert "the node q " in caught.value.why
    assert "(1 more)" in caught.value.why


def test_nodes_are_called_by_their_own_names():
    model = changed(SOUND, *SHIFTED)
    model.graph.node[1].name = "quantizer"
    assert isinstance(check_quantized(model, "tensorrt")[0], Finding)
    assert "quantizer" in findings(model, "tensorrt")


def test_numbers_in_constant_nodes_are_read():
    graph = ir.from_proto(changed(SOUND, *SHIFTED))
    for value in list(graph.graph.initializers.values()):
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
        constant.outputs[0].name = f"{value.name}.constant"
        graph.graph.insert_before(graph.graph[0], constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
        del graph.graph.initializers[value.name]
    assert list(findings(ir.to_proto(graph), "tensorrt")) == ["q", "d"]


def test_the_convolutions_in_float_are_those_that_were_to_stay_float():
    require_float(changed(SOUND, *ONE_SIDED), "openvino", ("y",))
    require_float(changed(SOUND), "openvino", ())


@pytest.mark.parametrize(
    ("changes", "names", "says"),
    [(ONE_SIDED, (), "y computes in float and was written as INT8"), ([], ("y",), "y computes in INT8")],
)
def test_a_convolution_in_another_type_than_written_is_a_fault_of_ours(changes, names, says):
    with pytest.raises(DensenetDeployError) as caught:
        require_float(changed(SOUND, *changes), "openvino", names)
    assert caught.value.exit_code == 1
    assert says in caught.value.why

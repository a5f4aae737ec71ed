"""Every fault made by hand is found and named, and nothing else is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.errors import DensenetDeployError
from densenet_deploy.quantization.checks import Finding, check_quantized, convolutions, require_float, require_sound

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
<float s = {0.1}, uint8 z = {3}, int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] ws = {0.1, 0.2}, int8[2] wz = {0, 0},
 float t = {0.2}, int32[2] b = {2000000000, -5}>
{
    q = QuantizeLinear (x, s, z)
    c = QLinearConv (q, s, z, w, ws, wz, t, z, b)
    y = DequantizeLinear (c, t, z)
}
"""


def parsed(text: str, *changes: tuple[str, str]) -> onnx.ModelProto:
    """The model of `text` after each first text was replaced by the second."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return onnx.parser.parse_model(text)


def changed(text: str, *changes: tuple[str, str]) -> onnx.ModelProto:
    """The same, and valid as ONNX."""
    model = parsed(text, *changes)
    onnx.checker.check_model(model)
    return model


def small(nodes: str, outputs: str = "float[] y") -> onnx.ModelProto:
    """A graph with the input `x` and many constants, of which the shapes need not fit."""
    text = f"""
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1, "test" : 1]>
        g (float[] x, float given, int8 given_z, float[2] given_two) => ({outputs})
        <float s = {{0.1}}, float t = {{0.2}}, float[1] s1 = {{0.1}}, float[2] s2 = {{0.1, 0.2}},
         float[2] u2 = {{0.1, 0.3}}, float[3] s3 = {{0.1, 0.1, 0.1}},
         int8 z = {{0}}, int8 z7 = {{7}}, uint8 u = {{0}}, int8[2] z2 = {{0, 0}}, int8[2] z07 = {{0, 7}},
         int8[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] f = {{1, 2}}, int32[2] i = {{5, 15}}>
        {{ {nodes} }}
    """
    return onnx.parser.parse_model(text)


def findings(model: onnx.ModelProto, recipe: str = "openvino") -> dict[str, str]:
    """The sentences by node."""
    return {finding.node: finding.sentence for finding in check_quantized(model, recipe)}


def test_sound_graphs_have_no_findings():
    assert findings(changed(SOUND), "tensorrt") == {}
    assert findings(changed(QLINEAR), "onnxruntime") == {}


# -- quantizers without effect

PAIR = "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z) "

INTEGER_CAPABLE = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("com.microsoft.QLinearAdd", "ConvInteger", "MatMulInteger"),
)
PASSING = (
    *("Clip", "Flatten", "Identity", "Max", "Min", "Relu", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


@pytest.mark.parametrize("operator", INTEGER_CAPABLE)
def test_a_pair_before_an_operator_with_integer_kernels_has_an_effect(operator):
    assert findings(small(f"{PAIR} y = {operator} (d, f)")) == {}


@pytest.mark.parametrize("operator", ["Mul", "BatchNormalization", "Softmax", "test.MyQLinear", "test.IntegerOf"])
def test_a_pair_before_another_operator_only_rounds(operator):
    found = findings(small(f"{PAIR} y = {operator} (d, f)"))
    assert list(found) == ["q"]
    assert "only rounds" in found["q"]


@pytest.mark.parametrize("operator", PASSING)
def test_operators_that_only_move_values_pass_integers_on(operator):
    assert findings(small(f"{PAIR} m = {operator} (d, f)  y = Conv (m, f)")) == {}
    assert list(findings(small(f"{PAIR} m = {operator} (d, f)  y = Mul (m, f)"))) == ["q"]
    assert list(findings(small(f"{PAIR} y = {operator} (d, f)"))) == ["q"]


def test_a_float_operator_does_not_pass_integers_on():
    assert list(findings(small(f"{PAIR} m = Mul (d, f)  y = Conv (m, f)"))) == ["q"]


@pytest.mark.parametrize("other", ["o = Mul (d, f)  y = Conv (d, f)", "y = Conv (d, f)  o = Mul (d, f)"])
def test_one_integer_reader_of_several_is_enough(other):
    assert findings(small(PAIR + other, "float[] y, float[] o")) == {}


def test_a_pair_before_the_output_is_found():
    pair = "c = Conv (d, k, b)\n    p = QuantizeLinear (c, s, z)\n    y = DequantizeLinear (p, s, z)"
    assert list(findings(changed(SOUND, ("y = Conv (d, k, b)", pair)))) == ["p"]


def test_quantized_outputs_have_an_effect():
    outputs = ("float[1, 2, 4, 4] y)", "float[1, 2, 4, 4] y, int8[1, 2, 4, 4] p)")
    assert findings(changed(SOUND, outputs, ("(d, k, b)", "(d, k, b)\n    p = QuantizeLinear (y, s, z)"))) == {}


def test_a_dequantizer_that_nothing_reads_is_found():
    model = changed(SOUND, ("y = Conv", "u = DequantizeLinear (q, s, z)\n    y = Conv"))
    assert list(findings(model)) == ["u"]


# -- quantizing again

AGAIN = (
    "q = QuantizeLinear (x, {0})  d = DequantizeLinear (q, {0})  r = QuantizeLinear (d, {1})  y = ConvInteger (r, w)"
)


def repetitions(nodes: str) -> list[str]:
    found = check_quantized(small(nodes), "openvino")
    return [finding.node for finding in found if "has just dequantized" in finding.sentence]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("s, z", "s, z"),
        ("s, z", "s1, z"),
        ("s, u", "s"),
        ("s", "s"),
        ("s, z", "s3, z2"),
        ("s3, z", "s, z"),
        ("s2, z2", "s2, z2"),
    ],
)
def test_quantizing_again_to_the_same_numbers_is_found(first, second):
    assert repetitions(AGAIN.format(first, second)) == ["r"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("s, z", "t, z"),
        ("s, z", "s, z7"),
        ("s, z", "s, u"),
        ("s, z", "s"),
        ("s2, z2", "u2, z2"),
        ("s2, z2", "s3, z2"),
        ("s3, z2", "s2, z2"),
        ("s2, z2", "s2, z07"),
        ("s, z", "given, z"),
        ("given, z", "s, z"),
        ("given, z", "given, z"),
        ("s, z", "s, given_z"),
        ("s, given_z", "s, z"),
    ],
)
def test_quantizing_to_other_numbers_is_not_a_repetition(first, second):
    assert repetitions(AGAIN.format(first, second)) == []


def test_only_a_dequantizer_is_repeated():
    text = (
        "q = QuantizeLinear (x, s, z)  m = test.Custom (q, s, z)  r = QuantizeLinear (m, s, z)  y = ConvInteger (r, w)"
    )
    assert repetitions(text) == []


# -- scales, zero points and biases


@pytest.mark.parametrize("scale", ["s, z", "s1, z", "given, z", "given_two, z2"])
def test_an_activation_with_one_scale_or_an_unknown_one_is_sound(scale):
    assert findings(small(f"q = QuantizeLinear (x, {scale})  y = ConvInteger (q, w)")) == {}


def test_a_scale_per_channel_of_an_activation_is_found():
    found = findings(small("q = QuantizeLinear (x, s2, z2)  d = DequantizeLinear (q, s2, z2)  y = Conv (d, f)"))
    assert list(found) == ["q", "d"]
    assert "2 scales" in found["q"]


def test_a_scale_per_channel_of_stored_weights_is_sound():
    assert findings(small("k = DequantizeLinear (w, s2, z2)  y = Conv (x, k)")) == {}


def test_a_scale_per_channel_of_weights_quantized_in_the_file_is_sound():
    assert findings(small("q = QuantizeLinear (f, s2, z2)  k = DequantizeLinear (q, s2, z2)  y = Conv (x, k)")) == {}


def test_a_scale_per_channel_of_computed_weights_is_found():
    assert list(findings(small("n = Neg (w)  k = DequantizeLinear (n, s2, z2)  y = Conv (x, k)"))) == ["k"]


QLINEAR_CONV = "y = QLinearConv (x, a, z, w, b, z2, c, z)"
QLINEAR_PRODUCT = "y = QLinearMatMul (x, a, z, w, b, z2, c, z)"


def with_scales(nodes: str, **scales: list[float]) -> onnx.ModelProto:
    model = small(nodes)
    for name, numbers in scales.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(numbers), name))
    return model


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf, np.nan])
@pytest.mark.parametrize(
    ("nodes", "node", "names"),
    [
        ("y = QuantizeLinear (x, a, z)", "y", "a"),
        ("y = DequantizeLinear (w, a, z)", "y", "a"),
        (QLINEAR_CONV, "y", "abc"),
        (QLINEAR_PRODUCT, "y", "abc"),
    ],
    ids=["QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"],
)
def test_a_scale_that_is_not_finite_and_positive_is_found_wherever_it_stands(nodes, node, names, scale):
    sound = {name: [1e-30] for name in names}
    assert findings(with_scales(nodes, **sound)) == {}
    for name in names:
        (found,) = check_quantized(with_scales(nodes, **sound | {name: [scale]}), "openvino")
        assert (found.node, f"has a scale, {name}," in found.sentence) == (node, True)


def test_one_impossible_scale_of_several_is_found():
    assert list(findings(with_scales("y = DequantizeLinear (w, a, z)", a=[0.1, 0.0]))) == ["y"]


@pytest.mark.parametrize(("bias", "nodes"), [(2**31 - 129, []), (2**31 - 128, ["c"]), (2**31 - 1, ["c"])])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_bias_where_clipping_in_float32_ends_is_found(bias, sign, nodes):
    assert list(findings(changed(QLINEAR, ("2000000000", str(sign * bias))))) == nodes


def test_the_most_negative_bias_is_found_and_no_bias_is_sound():
    assert list(findings(changed(QLINEAR, ("2000000000", str(-(2**31)))))) == ["c"]
    assert findings(changed(QLINEAR, ("z, b)", "z)"))) == {}


# -- for TensorRT

UINT8 = [("int8 z = {0}", "uint8 z = {0}")]
SHIFTED = [("int8 z = {0}", "int8 z = {7}")]
SHIFTED_WEIGHTS = [("wz = {0, 0}", "wz = {0, 7}")]
COMPUTED = [("int8 z = {0}", "int8 z0 = {0}"), ("r = Relu (x)", "z = Neg (z0)\n    r = Relu (x)")]
INTEGER_BIAS = [
    ("float[2] b = {0.5, 1.5}", "int32[2] i = {5, 15}"),
    ("y = Conv", "b = DequantizeLinear (i, s)\n    y = Conv"),
]
WEIGHTS = "    k = DequantizeLinear <axis: int = 0> (w, ws, wz)\n"
FLOAT_WEIGHTS = [("w = {1, 2, 3, 4}", "u = {1, 2, 3, 4}, float[2, 2, 1, 1] k = {1, 2, 3, 4}"), (WEIGHTS, "")]
DATA = "    q = QuantizeLinear (r, s, z)\n    d = DequantizeLinear (q, s, z)\n"
FLOAT_DATA = [(DATA, ""), ("Conv (d,", "Conv (r,")]


@pytest.mark.parametrize(
    ("changes", "nodes", "word"),
    [
        (UINT8, ["q", "d"], "uint8"),
        (SHIFTED, ["q", "d"], "zero point"),
        (SHIFTED_WEIGHTS, ["k"], "zero point"),
        (COMPUTED, ["q", "d"], "zero point"),
        (INTEGER_BIAS, ["b"], "int32"),
        (FLOAT_WEIGHTS, ["y"], "not both"),
        (FLOAT_DATA, ["y"], "not both"),
        ([*FLOAT_WEIGHTS, *FLOAT_DATA, *INTEGER_BIAS], ["b"], "int32"),
        ([*FLOAT_WEIGHTS, *FLOAT_DATA], [], ""),
    ],
    ids=[
        *("uint8", "zero point", "a zero point of weights", "a computed zero point", "int32 bias"),
        *("float weights", "float data", "only the bias", "all float"),
    ],
)
def test_faults_for_tensorrt_are_found_only_there(changes, nodes, word):
    model = changed(SOUND, *changes)
    found = findings(model, "tensorrt")
    assert list(found) == nodes
    assert all(word in sentence for sentence in found.values())
    assert findings(model, "openvino") == {}
    assert findings(model, "onnxruntime") == {}


def test_a_convolution_of_computed_float_weights_and_quantized_data_is_half_quantized():
    assert list(findings(small(f"{PAIR} k = Relu (f)  y = Conv (d, k)"), "tensorrt")) == ["y"]
    assert list(findings(small(f"{PAIR} y = Conv (given_two, given_two)  p = Conv (d, f)"), "tensorrt")) == ["p"]


def test_uint8_inputs_and_outputs_are_found_too():
    model = parsed(SOUND, ("float[1, 2, 4, 4] x", "uint8[1, 2, 4, 4] x"))
    assert "uint8" in findings(model, "tensorrt")["r"]


@pytest.mark.parametrize(
    ("head", "found"), [("c = Cast <to = 1> (x)", []), ("s = Relu (x)  c = Cast <to = 1> (s)", ["s", "c"])]
)
def test_pixels_that_are_cast_at_once_are_what_tensorrt_takes(head, found):
    text = f"""<ir_version: 9, opset_import: ["" : 17]> g (uint8[1, 4, 4, 3] x) => (float[1, 4, 4, 3] y)
        {{ {head}  y = Relu (c) }}"""
    assert list(findings(onnx.parser.parse_model(text), "tensorrt")) == found


def test_a_quantizer_without_zero_point_makes_uint8():
    model = changed(
        SOUND,
        ("QuantizeLinear (r, s, z)", "QuantizeLinear (r, s)"),
        ("DequantizeLinear (q, s, z)", "DequantizeLinear (q, s)"),
    )
    found = findings(model, "tensorrt")
    assert list(found) == ["q", "d"]
    assert all("uint8" in sentence for sentence in found.values())


def test_a_dequantizer_without_zero_point_has_zero():
    for names in (["w", "ws"], ["w", "ws", ""]):
        model = changed(SOUND)
        (node,) = (node for node in model.graph.node if node.output[0] == "k")
        node.ClearField("input")
        node.input.extend(names)
        assert findings(model, "tensorrt") == {}


# -- what is refused


def test_a_fault_of_ours_is_refused_by_name():
    require_sound(changed(SOUND), "tensorrt")
    for changes, count in ((UINT8, 2), (SHIFTED_WEIGHTS, 1)):
        model = changed(SOUND, *changes)
        first = check_quantized(model, "tensorrt")[0]
        with pytest.raises(DensenetDeployError) as caught:
            require_sound(model, "tensorrt")
        assert caught.value.exit_code == 1
        assert caught.value.subject == "the graph of the recipe tensorrt"
        assert f"{first.node} {first.sentence}" in caught.value.why
        assert caught.value.why.endswith(first.sentence if count == 1 else f"({count - 1} more)")


def test_nodes_are_called_by_their_own_names():
    model = changed(SOUND, *SHIFTED)
    model.graph.node[1].name = "quantizer"
    assert [finding.node for finding in check_quantized(model, "tensorrt")] == ["quantizer", "d"]
    assert str(Finding("quantizer", "is at fault")) == "quantizer is at fault"


def test_numbers_in_constant_nodes_are_read():
    graph = ir.from_proto(changed(SOUND, *SHIFTED))
    for value in list(graph.graph.initializers.values()):
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)])
        constant.outputs[0].name = f"{value.name}.constant"
        graph.graph.insert_before(graph.graph[0], constant)
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
        del graph.graph.initializers[value.name]
    assert list(findings(ir.to_proto(graph), "tensorrt")) == ["q", "d"]


def test_constants_of_another_form_are_not_known():
    text = "c = Constant <value_floats: floats = [0.1, 0.2]> ()  q = QuantizeLinear (x, c, z)  y = ConvInteger (q, w)"
    assert findings(small(text)) == {}


def test_convolutions_are_counted_by_what_they_compute_on():
    nodes = f"""
        {PAIR} k = DequantizeLinear (w, s, z)  a = Conv (d, k)  b = Conv (d, f)  c = Conv (x, k)
        i = ConvInteger (q, w)  l = QLinearConv (q, s, z, w, s, z, s, z)  p = MatMul (d, k)  y = MatMul (d, f)
    """
    found = convolutions(small(nodes))
    assert (found.integer, found.float) == (("a", "i", "l"), ("b", "c"))


def test_the_convolutions_in_float_are_those_that_were_to_stay_float():
    require_float(changed(SOUND, *FLOAT_WEIGHTS), "openvino", ("y",))
    require_float(changed(SOUND), "openvino", ())


@pytest.mark.parametrize(
    ("changes", "names", "says"),
    [
        (FLOAT_WEIGHTS, (), "the convolution y computes in float and was written as INT8"),
        ([], ("y",), "the convolution y computes in INT8 and was written as float"),
        (FLOAT_WEIGHTS, ("y", "v", "w"), "the convolution v computes in INT8 and was written as float"),
    ],
)
def test_a_convolution_in_another_type_than_written_is_a_fault_of_ours(changes, names, says):
    with pytest.raises(DensenetDeployError) as caught:
        require_float(changed(SOUND, *changes), "openvino", names)
    assert caught.value.exit_code == 1
    assert caught.value.why == says

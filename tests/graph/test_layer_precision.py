"""What each layer of a graph computes in, from small texts."""

from __future__ import annotations

import onnx
import pytest

from densenet_deploy.graph.layer_precision import LayerPrecision, layer_precisions

STORED = {  # float16 and bfloat16 by their bits
    "f": "float[1,1,1,1] f = {1.0}",
    "e": "double[1,1,1,1] e = {1.0}",
    "g": "bfloat16[1,1,1,1] g = {16256}",
    "h": "float16[1,1,1,1] h = {15360}",
    "c": "int8[1,1,1,1] c = {1}",
    "u": "uint8[1,1,1,1] u = {1}",
    "s": "float s = {1.0}",
    "sh": "float16 sh = {15360}",
    "zi": "int8 zi = {0}",
    "zu": "uint8 zu = {0}",
}


CODES = "q = QuantizeLinear (x, s, zu) d = DequantizeLinear (q, s, zu) w = DequantizeLinear (c, s, zi)"


def layers(body: str) -> list[LayerPrecision]:
    stored = ", ".join(STORED.values())
    header = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    text = f"{header} g (float[N,1,4,4] x, float[1,1,1,1] fed) => (float[] y) <{stored}> {{ {body} }}"
    return list(layer_precisions(onnx.parser.parse_model(text)))


def precisions(body: str) -> list[str]:
    return [layer.precision for layer in layers(body)]


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("f", "fp32"),
        ("h", "fp16"),
        ("e", "fp64"),
        ("g", "bf16"),
        ("Cast <saturate=1, to=16> (f)", "bf16"),
        ("Cast <to=10> (fed)", "fp16"),
        ("Cast <to=7> (f)", "unknown"),
        ("Identity (h)", "fp16"),
        ("Transpose (h)", "fp16"),
        ("DequantizeLinear (c, s, zi)", "fp32"),
        ("DequantizeLinear (c, sh, zi)", "fp16"),
        ("Constant <value = float16[1,1,1,1] {15360}> ()", "fp16"),
        ("Constant <value_float = 1.0> ()", "unknown"),
        ("Relu (f)", "unknown"),
        ("c", "unknown"),
        ("fed", "unknown"),
    ],
)
@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
def test_a_float_layer_computes_in_the_type_of_its_weight(operator, weight, expected):
    made = f"w = {weight}" if "(" in weight else f"w = Identity ({weight})"
    assert precisions(f"{made} y = {operator} (x, w)") == [expected]


def test_a_stored_weight_is_read_directly_or_through_a_chain():
    assert precisions("y = Conv (x, h, f)") == ["fp16"]
    assert precisions("a = DequantizeLinear (c, sh, zi) b = Transpose (a) w = Identity (b) y = Conv (x, w)") == ["fp16"]


@pytest.mark.parametrize(
    "operator",
    ["QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "com.microsoft.QGemm"],
)
def test_integer_operators_compute_in_int8(operator):
    (layer,) = layers(f"y = {operator} (x, f)")
    assert (layer.operator, layer.precision) == (operator.rpartition(".")[2], "int8")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("y = Conv (d, w)", "int8"),
        ("y = Conv (d, w, f)", "int8"),
        ("y = Conv (d, h)", "fp16"),
        ("y = Conv (x, w)", "fp32"),
        ("r = Relu (d) y = Conv (r, w)", "fp32"),
        ("r = Relu (w) y = Conv (d, r)", "unknown"),
    ],
)
def test_a_layer_that_reads_codes_for_data_and_weights_computes_in_int8(layer, expected):
    assert precisions(f"{CODES} {layer}") == [expected]


def test_layers_come_in_their_order_with_a_name_or_that_of_their_output():
    assert layers("[first] a = Conv (x, f) b = Relu (a) c2 = MatMul (b, h) y = ConvInteger (x, c)") == [
        LayerPrecision("first", "Conv", "fp32"),
        LayerPrecision("c2", "MatMul", "fp16"),
        LayerPrecision("y", "ConvInteger", "int8"),
    ]


@pytest.mark.parametrize(
    "operator", ["ConvTranspose", "DeformConv", "com.microsoft.FusedConv", "com.microsoft.NhwcConv"]
)
def test_a_convolution_of_any_operator_counts(operator):
    (layer,) = layers(f"y = {operator} (x, f)")
    assert (layer.operator, layer.precision, layer.is_convolution) == (operator.split(".")[-1], "fp32", True)


@pytest.mark.parametrize(
    ("operator", "is_convolution"), [("ConvInteger", True), ("MatMulInteger", False), ("com.microsoft.QGemm", False)]
)
def test_integer_convolutions_are_convolutions_and_products_are_not(operator, is_convolution):
    assert [layer.is_convolution for layer in layers(f"y = {operator} (x, c)")] == [is_convolution]


def test_layers_in_branches_count_and_read_values_around_them():
    branches = """then_branch = t () => (float[] a) { w2 = Identity (h)  [inner] a = Conv (x, w2) },
        else_branch = e () => (float[] b) { b = Conv (d, w) }"""
    assert layers(f"{CODES} [outer] o = Conv (x, f)  y = If <{branches}> (fed)") == [
        LayerPrecision("outer", "Conv", "fp32"),
        LayerPrecision("inner", "Conv", "fp16"),
        LayerPrecision("b", "Conv", "int8"),
    ]


def test_layers_in_functions_count():
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[N,1,4,4] x) => (float[] y) { y = own.twice (x) }
        <opset_import: ["" : 21], domain: "own"> twice (a) => (b) {
            f = Constant <value = float[1,1,1,1] {1.0}> ()  i = Identity (f)  b = Conv (a, i) }"""
    (layer,) = layer_precisions(onnx.parser.parse_model(text))
    assert (layer.operator, layer.precision) == ("Conv", "fp32")

"""What each layer of a graph computes in, from small texts."""

from __future__ import annotations

import onnx
import pytest

from densenet_deploy.graph.layer_precision import layer_precisions

STORED = {  # float16 by its bits
    "f": "float[1,1,1,1] f = {1.0}",
    "h": "float16[1,1,1,1] h = {15360}",
    "c": "int8[1,1,1,1] c = {1}",
    "u": "uint8[1,1,1,1] u = {1}",
    "s": "float s = {1.0}",
    "sh": "float16 sh = {15360}",
    "zi": "int8 zi = {0}",
    "zu": "uint8 zu = {0}",
}


CODES = "q = QuantizeLinear (x, s, zu)"


def precisions(body: str) -> list[str]:
    stored = ", ".join(STORED.values())
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,1,4,4] x) => (float[] y) <{stored}> {{ {body} }}'
    return [layer.precision for layer in layer_precisions(onnx.parser.parse_model(text))]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Conv (x, f)", "fp32"),
        ("z = Cast <to=10> (x) y = Conv (z, h)", "fp16"),
        ("w = Cast <to=16> (f) z = Cast <to=16> (x) y = Conv (z, w)", "bf16"),
        ("w = Transpose (f) y = Conv (x, w)", "fp32"),
        (f"{CODES} d = DequantizeLinear (q, s, zu) w = DequantizeLinear (c, s, zi) y = Conv (d, w)", "int8"),
        (f"{CODES} y = QLinearConv (q, s, zu, c, s, zi, s, zu)", "int8"),
        (f"{CODES} y = ConvInteger (q, c)", "int8"),
    ],
)
def test_a_layer_computes_in(body: str, expected: str) -> None:
    assert precisions(body) == [expected]


@pytest.mark.parametrize(("scale", "expected"), [("s", "fp32"), ("sh", "fp16")])
def test_codes_for_the_weights_alone_are_restored_and_computed_in_float(scale: str, expected: str) -> None:
    assert precisions(f"w = DequantizeLinear (c, {scale}, zi) y = Conv (x, w)") == [expected]


def test_a_computed_weight_is_unknown_and_other_operators_are_not_layers() -> None:
    assert precisions("w = Relu (f) y = Conv (x, w)") == ["unknown"]
    assert precisions("y = Relu (x)") == []

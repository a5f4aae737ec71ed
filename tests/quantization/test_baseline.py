"""The INT8 form of general tools: one scale for each tensor, rounded between any two operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.quantization.baseline import write_baseline
from densenet_deploy.quantization.observers.observer import ChannelRanges
from tests.quantization.recipes.written import constant_of, graph_of, lines, outputs_of

BODY = "[c] a = Conv(x, w)  r = Relu(a)  s = Sigmoid(r)  m = Mul(r, s)  [d] y = Conv(m, v)"
WRITTEN = """
x:codes = QuantizeLinear(x, f32:1, u8:51)
x:quantized = DequantizeLinear(x:codes, f32:1, u8:51)
w:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
a = Conv(x:quantized, w:quantized)
r = Relu(a)
r:codes = QuantizeLinear(r, f32:0.4, u8:0)
r:quantized = DequantizeLinear(r:codes, f32:0.4, u8:0)
s = Sigmoid(r:quantized)
m = Mul(r:quantized, s)
v:quantized = DequantizeLinear(i8[2,2,1,1], f32[2], i8[2]) axis=0
y = Conv(m, v:quantized)
"""


def _ranges(**ends: tuple[list[float], list[float]]) -> dict[str, ChannelRanges]:
    return {name: ChannelRanges(np.float32(low), np.float32(high)) for name, (low, high) in ends.items()}


RANGES = _ranges(x=([0, -51], [204, 0]), r=([0, 0], [51, 102]), elsewhere=([0], [1]))


@pytest.mark.parametrize(("bits", "codes"), [(8, [[[[127]], [[127]]], [[[-127]], [[127]]]]), (7, None)])
def test_tensors_with_a_range_are_rounded_for_all_of_their_readers_and_weights_always(bits, codes):
    model = graph_of(BODY)
    write_baseline(model, RANGES, bits)
    assert lines(model) == WRITTEN.split("\n")[1:-1]
    assert constant_of(model, "w.codes") == (codes or (np.array([[1, 1], [-1, 1]])[:, :, None, None] * 63).tolist())
    assert constant_of(model, "w.scale") == pytest.approx([1 / (127 if bits == 8 else 63)] * 2)


def test_whole_numbers_that_the_scales_hold_come_out_as_they_were():
    body = "a = Conv(x, w)  y = Neg(a)"
    model, plain = graph_of(body), graph_of(body)
    write_baseline(model, _ranges(x=([-8, -51], [204, 0]), a=([-127.5, 0], [0, 127.5])), 8)
    for found, wanted in zip(outputs_of(model), outputs_of(plain), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_weights_that_are_no_constants_stay_as_they_are():
    model = graph_of("k = Abs(w)  y = Conv(x, k)")
    write_baseline(model, {}, 8)
    assert lines(model)[1:] == ["y = Conv(x, k)"]


def test_what_leaves_the_graph_leaves_it_unrounded():
    model = graph_of("y = Relu(x)  z = Neg(y)", outputs="float[1,2,H,W] y, float[1,2,H,W] z")
    write_baseline(model, _ranges(y=([0, 0], [255, 1])), 8)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert [str(line) for line in lines(model)][-1] == "z = Neg(y:quantized)"


def test_a_model_without_ranges_and_convolutions_is_unchanged():
    model = graph_of("y = Relu(x)")
    before = ir.to_proto(model)
    write_baseline(model, {}, 8)
    assert ir.to_proto(model) == before

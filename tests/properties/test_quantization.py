"""Integers for any weights, biases and ranges: no code beyond its limit, no bias that clips, every scale a number.

What QLinearConv gives is computed here from its definition, in whole numbers, and ONNX Runtime must agree within one
code: it multiplies by a float32 where the definition divides.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.quantization.scales import (
    LIMITS,
    IntegerWeights,
    QuantizedType,
    affine,
    quantize_rows,
    quantize_with_bias,
    unsigned,
)
from densenet_deploy.workflows.quantize.preparation import weight_bits
from tests.properties.holds import holds_for

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIZES = st.sampled_from((0.0, 1e-45, 1e-38, 1e-20, 1e-9, 1e-3, 1.0, 300.0, 1e6, 1e20, 1e38))
"""How large numbers are; what trained networks hold lies between the dead channel's 1e-40 and some 1e3."""
SCALES = st.floats(1e-8, 1e4)
BITS = st.sampled_from(sorted(LIMITS))
EXACT_BITS = st.sampled_from([bits for bits in sorted(LIMITS) if bits <= weight_bits()])
"""On an x86 CPU without VNNI, sums of products of 8 bits saturate."""


@st.composite
def rows_of_weights(draw: st.DrawFn, *, kernel: int = 1) -> np.ndarray:
    """(M, I, K, K) in float64, each row of a size of its own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(1, 5))
    sizes = np.array([draw(SIZES) for _ in range(rows)])
    return rng.uniform(-1, 1, (rows, draw(st.integers(1, 4)), kernel, kernel)) * sizes.reshape(-1, 1, 1, 1)


def _assert_numbers(integers: IntegerWeights, bits: int) -> None:
    assert np.isfinite(integers.scales).all()
    assert (integers.scales > 0).all()
    assert np.abs(integers.values.astype(int)).max() <= LIMITS[bits]


@holds_for(few=150, many=1_000, weights=rows_of_weights(), bits=BITS, per_channel=st.booleans())
def test_quantized_weights_are_within_half_a_step(weights: np.ndarray, bits: int, per_channel: bool) -> None:
    codes, scales = quantize_rows(weights, bits=bits, per_channel=per_channel)
    _assert_numbers(IntegerWeights(codes, scales, np.zeros(1, np.int32)), bits)
    column = np.reshape(scales.astype(np.float64), (-1, 1, 1, 1))
    # half a step, and what a scale rounded to float32 is off by over 127 of them
    assert (np.abs(codes * column - weights) <= column * (0.5 + 127 * 2**-23)).all()


@holds_for(
    few=150, many=1_000, weights=rows_of_weights(), size=SIZES, scale=SCALES, bits=BITS, per_channel=st.booleans()
)
def test_no_bias_clips(weights: np.ndarray, size: float, scale: float, bits: int, per_channel: bool) -> None:
    bias = np.random.default_rng(0).uniform(-1, 1, len(weights)) * size
    integers = quantize_with_bias(weights, bias, scale, bits=bits, per_channel=per_channel)
    _assert_numbers(integers, bits)
    steps = scale * integers.scales.astype(np.float64)
    # half a step, and the rounding of a scale to float32 over the 2^30 steps that a bias may have
    assert (np.abs(integers.bias * steps - bias) <= steps * 0.5 + np.abs(bias) * 1e-6).all()
    assert np.abs(integers.bias.astype(np.int64)).max() <= 2**30 * (1 + 1e-6)


RANGES = st.tuples(FLOAT32, FLOAT32).map(sorted)


@holds_for(few=150, many=1_000, ends=RANGES)
def test_a_type_holds_its_range(ends: list[float]) -> None:
    low, high = ends
    types = [affine(low, high)] + ([unsigned(high)] if low >= 0 else [])
    for given in types:
        assert np.isfinite(np.float32(given.scale))
        assert np.float32(given.scale) > 0
        assert 0 <= given.zero_point <= 255
        zero, *codes = (int(given.quantized(np.float32([value]))[0]) for value in (0.0, low, high))
        assert zero == given.zero_point, "zero is exact"
        for value, code in zip((low, high), codes, strict=True):
            # zero is moved to a whole code, by half a step at most, and a value is rounded by half of one
            assert abs((code - given.zero_point) * given.scale - value) <= given.scale * 1.01


LAYERS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "rows": st.integers(1, 5),
        "inputs": st.integers(1, 6),
        "kernel": st.sampled_from((1, 3)),
        "input_scale": st.floats(1e-4, 1.0),
        "output_scale": st.floats(1e-3, 10.0),
        "input_zero": st.integers(0, 255),
        "output_zero": st.integers(0, 255),
        "bias": st.sampled_from((0.0, 0.1, 10.0, 1e4)),
        "bits": EXACT_BITS,
        "per_channel": st.booleans(),
    }
).map(lambda facts: SimpleNamespace(**facts))


@holds_for(few=150, many=500, layer=LAYERS)
def test_onnx_runtime_computes_as_the_integers_define(layer: SimpleNamespace) -> None:
    rng = np.random.default_rng(layer.seed)
    shape = (layer.rows, layer.inputs, layer.kernel, layer.kernel)
    weights = rng.standard_normal(shape) * 10 ** rng.uniform(-6, 1, (layer.rows, 1, 1, 1))
    bias = rng.standard_normal(layer.rows) * layer.bias
    codes = rng.integers(0, 256, (2, layer.inputs, 6, 6)).astype(np.uint8)
    given, wanted = (
        QuantizedType(layer.input_scale, layer.input_zero),
        QuantizedType(layer.output_scale, layer.output_zero),
    )
    integers = quantize_with_bias(weights, bias, given.scale, bits=layer.bits, per_channel=layer.per_channel)
    expected = _by_definition(codes, integers, given, wanted)
    found = _by_onnx_runtime(codes, integers, given, wanted)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def _by_definition(
    codes: np.ndarray, integers: IntegerWeights, given: QuantizedType, wanted: QuantizedType
) -> np.ndarray:
    centred = codes.astype(np.int64) - given.zero_point
    kernel = integers.values.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(centred, (kernel, kernel), axis=(2, 3))
    sums = np.einsum("nihwkl,oikl->nohw", windows, integers.values.astype(np.int64)) + integers.bias.reshape(
        1, -1, 1, 1
    )
    factor = (
        np.float64(np.float32(given.scale)) * integers.scales.astype(np.float64) / np.float64(np.float32(wanted.scale))
    )
    result = np.rint(sums * np.reshape(factor, (1, -1, 1, 1))) + wanted.zero_point
    return np.clip(result, 0, 255).astype(np.uint8)


def _by_onnx_runtime(
    codes: np.ndarray, integers: IntegerWeights, given: QuantizedType, wanted: QuantizedType
) -> np.ndarray:
    constants = {
        "x_scale": np.float32(given.scale),
        "x_zero": np.uint8(given.zero_point),
        "w": integers.values,
        "w_scale": integers.scales,
        "w_zero": np.zeros(integers.scales.shape, np.int8),
        "y_scale": np.float32(wanted.scale),
        "y_zero": np.uint8(wanted.zero_point),
        "b": integers.bias,
    }
    node = helper.make_node("QLinearConv", ["x", *constants], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, codes.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": codes})[0]
    return found


def test_a_bias_at_the_scale_of_dead_weights_alone_would_clip() -> None:
    """The control: what `quantize_with_bias` raises the scale for."""
    _, scales = quantize_rows(np.full((1, 1, 1, 1), 1e-9))
    assert 0.5 / (0.01 * float(scales[0])) > 2**31


def test_numbers_of_onnx_are_those_of_the_definition() -> None:
    """The reference itself, on a sum that can be done by hand: (3-1)·2·127 codes at a scale of 1/127."""
    integers = quantize_with_bias(np.ones((1, 1, 1, 1)), np.zeros(1), 2.0)
    given, wanted = QuantizedType(2.0, 1), QuantizedType(1.0, 10)
    codes = np.full((1, 1, 1, 1), 3, np.uint8)
    assert _by_definition(codes, integers, given, wanted).item() == 14

"""Rounding for what a layer reads: by hand, against nearest rounding and GPTQ's own form, and in a graph."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.nodes import constant, weight_and_bias
from densenet_deploy.quantization import weight_rounding
from densenet_deploy.quantization.scales import QuantizedType, quantize_rows
from densenet_deploy.quantization.weight_rounding import InputMoments, round_weights, rounded_rows
from tests.quantization.recipes.written import graph_of, write

ONE = np.ones(1, np.float32)


def _rounded(row: list[float], moments: list[list[float]], damping: float = 0.01) -> list[int]:
    return rounded_rows(np.array([row]), ONE, np.array(moments, float), damping)[0].tolist()


def _noise(errors: np.ndarray, moments: np.ndarray) -> np.ndarray:
    return np.einsum("ij,jk,ik->i", errors, moments, errors)


# --- by hand

ALIKE = [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_what_one_weight_loses_another_gains():
    """Nearest, (3, 0, 0), loses (0.4 + 0.4)² = 0.64, and (3, 0, 1) loses (0.4 - 0.6)² = 0.04."""
    assert _rounded([3, 0.4, 0.4], ALIKE) == [3, 0, 1]


@pytest.mark.parametrize(("weight", "expected"), [(0.1039, 0), (0.1041, 1)])
def test_an_error_is_handed_on_by_its_covariance_over_the_damped_variance(weight, expected):
    """0.4 / 1.01 = 0.39604, and 0.10396 is missing to a half."""
    assert _rounded([3, 0.4, weight], ALIKE) == [3, 0, expected]


@pytest.mark.parametrize(("weight", "expected"), [(0.29, 0), (0.31, 1)])
def test_damping_is_a_share_of_the_mean_variance(weight, expected):
    """The mean variance is 2 and is added to 2: 0.4 · 2 / 4 = 0.2."""
    assert _rounded([3, 0.4, weight], (2 * np.array(ALIKE)).tolist(), damping=1.0) == [3, 0, expected]


def test_the_strongest_input_comes_first():
    """x₂ = 2·x₁, so e₁ + 2·e₂ counts: (1, 0) loses 0.2², and from the other end (0, 1) would lose 0.8²."""
    assert _rounded([3, 0.4, 0.4], [[9, 0, 0], [0, 1, 2], [0, 2, 4]]) == [3, 1, 0]


def test_no_weight_becomes_larger_than_the_largest():
    """x₂ = 4·x₁: 0.4 + 4·0.4 = 2 would take all of it back."""
    assert _rounded([1, 0.4, 0.4], [[99, 0, 0], [0, 1, 4], [0, 4, 16]]) == [1, 1, 0]
    assert _rounded([2, 0.4, 0.4], [[99, 0, 0], [0, 1, 4], [0, 4, 16]]) == [2, 2, 0]
    assert _rounded([-2, -0.4, -0.4], [[99, 0, 0], [0, 1, 4], [0, 4, 16]]) == [-2, -2, 0]


STRONG = [[1, 2, 0], [2, 4, 0], [0, 0, 1]]


def test_the_largest_weight_of_a_row_keeps_its_value_so_that_the_scale_stays():
    """2 - 0.8 would be rounded to 1."""
    assert _rounded([2, -0.4, 0], STRONG) == [2, 0, 0]
    assert _rounded([2, -0.4, 2], STRONG) == [2, 0, 2]


def test_where_all_rows_share_a_scale_only_the_largest_weight_of_all_is_kept():
    rows = np.array([[4, 0, 0], [2, -0.4, 0]])
    assert rounded_rows(rows, np.float32(1), np.array(STRONG, float)).tolist() == [[4, 0, 0], [1, 0, 0]]
    assert rounded_rows(rows, np.ones(2, np.float32), np.array(STRONG, float)).tolist() == [[4, 0, 0], [2, 0, 0]]


def test_a_row_that_nearest_rounding_leaves_closer_is_rounded_to_nearest():
    """The first of the last three is the last to be rounded: -0.2 becomes -1, which loses 1.22; nearest loses 1.02."""
    moments = [[99, 0, 0, 0], [0, 2, -2, 1], [0, -2, 5, -1], [0, 1, -1, 2]]
    row = [9, -0.2, -0.6, 1.3]
    (with_feedback, nearest) = ([9, -1, -1, 1], [9, 0, -1, 1])
    lost = _noise(np.array([row]) - np.array([with_feedback, nearest]), np.array(moments))
    assert lost.tolist() == pytest.approx([1.22, 1.02])
    assert _rounded(row, moments) == nearest


# --- what may come


def test_dead_inputs_single_columns_and_rows_of_zeros():
    assert _rounded([3, 0.4, 0.6], [[0] * 3] * 3) == [3, 0, 1], "nothing is read"
    assert _rounded([3, 0.4, 0.4], [[1, 0, 0], [0, 1, 0], [0, 0, 0]]) == [3, 0, 0], "one input is dead"
    assert _rounded([0.4], [[2]]) == [0]
    assert _rounded([127.0], [[2]]) == [127]
    assert rounded_rows(np.zeros((2, 3)), np.full(2, 1e-12, np.float32), np.eye(3)).tolist() == [[0] * 3] * 2


def test_a_constant_row_keeps_all_its_weights():
    assert _rounded([2, 2, 2], ALIKE) == [2, 2, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        _rounded([1, bad], [[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="finite"):
        _rounded([1, 0.4], [[1, 0], [0, bad]])


# --- random layers


def _layer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 weights, and moments of correlated inputs: fewer than columns in every other case, some of them dead."""
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    count = columns // 2 + 1 if seed % 2 else 4 * columns
    inputs = np.maximum(rng.standard_normal((count, columns)) @ rng.standard_normal((columns, columns)), 0)
    inputs[:, rng.random(columns) < 0.1] = 0
    weights = (rng.standard_normal((rows, columns)) * rng.uniform(0.01, 10, (rows, 1))).astype(np.float32)
    return weights.astype(np.float64), inputs.T @ inputs / count


@pytest.mark.parametrize("per_channel", [True, False])
def test_outputs_are_never_farther_than_with_nearest_rounding(per_channel):
    gains = []
    for seed in range(100):
        weights, moments = _layer(seed)
        nearest, scales = quantize_rows(weights, bits=7, per_channel=per_channel)
        column = scales.astype(np.float64).reshape(-1, 1)
        found = rounded_rows(weights, scales, moments)
        before, after = (_noise(weights - codes * column, moments) for codes in (nearest, found))
        assert (after <= before * (1 + 1e-9)).all()
        gains.append(after.sum() / max(before.sum(), 1e-30))
    assert np.mean(gains) < 0.5  # measured: 0.3


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [7, 8])
def test_a_recipe_finds_the_same_values_and_scales(bits, per_channel):
    """Also after gains, which rows with their own scales absorb."""
    for seed in range(50):
        weights, moments = _layer(seed)
        scales = quantize_rows(weights, bits=bits, per_channel=per_channel)[1]
        found = rounded_rows(weights, scales, moments)
        stored = (found * scales.astype(np.float64).reshape(-1, 1)).astype(np.float32).astype(np.float64)
        codes, again = quantize_rows(stored, bits=bits, per_channel=per_channel)
        assert np.array_equal(codes, found)
        assert np.array_equal(again, scales)
        if per_channel:
            gain = np.random.default_rng(seed).uniform(0.8, 1.25, (len(weights), 1))
            assert np.array_equal(quantize_rows((stored * gain).astype(np.float32), bits=bits)[0], found)


def test_rows_below_the_smallest_scale_keep_their_values_too():
    """As TensorRT's recipe has them: a scale of 2⁻²⁰ for weights that reach 3.2 steps."""
    smallest = 2.0**-20
    weights = np.array([[3.2, 0.4, 0.4]]) * smallest
    codes, scales = quantize_rows(weights, smallest=smallest)
    found = rounded_rows(weights, scales, np.array(ALIKE, float))
    assert (codes.tolist(), found.tolist()) == ([[3, 0, 0]], [[3, 0, 1]])
    assert quantize_rows(found * scales.astype(np.float64), smallest=smallest)[0].tolist() == [[3, 0, 1]]


def _gptq(exact: np.ndarray, moments: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """GPTQ as its authors write it: weights that are not yet rounded move by rows of the Cholesky factor of H⁻¹."""
    inverse = np.linalg.cholesky(np.linalg.inv(moments)).T
    left, found = exact.copy(), np.empty_like(exact)
    for j in range(exact.shape[1]):
        kept = np.abs(np.rint(exact[:, j])) == limits
        found[:, j] = np.where(kept, np.rint(exact[:, j]), np.clip(np.rint(left[:, j]), -limits, limits))
        left[:, j:] -= np.outer((left[:, j] - found[:, j]) / inverse[j, j], inverse[j, j:])
    return found


@pytest.mark.parametrize("columns", [63, 64, 65, 200])
def test_it_is_gptq(columns):
    """In blocks of 64 columns, which change nothing."""
    rng = np.random.default_rng(columns)
    inputs = np.abs(rng.standard_normal((2 * columns, columns)) + rng.standard_normal((2 * columns, 1)))
    inputs *= np.linspace(2, 1, columns)
    moments = inputs.T @ inputs / len(inputs)
    order = np.argsort(-np.diag(moments))
    exact = rng.uniform(-63, 63, (5, columns))
    exact[:, 3] = 63
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(columns)
    found = np.empty_like(exact)
    found[:, order] = _gptq(exact[:, order], damped[np.ix_(order, order)], np.full(5, 63.0))
    assert np.array_equal(rounded_rows(exact, np.ones(5, np.float32), moments), found)


# --- moments


def test_the_covariance_is_that_of_all_patches_in_whatever_parts_they_come():
    patches = np.random.default_rng(0).uniform(0, 3, (1300, 5)).astype(np.float32)
    moments = InputMoments(5)
    for part in np.split(patches, [100, 511, 512, 1100]):
        moments.update(part)
    # sums of 1300 products in float32
    np.testing.assert_allclose(moments.covariance(), np.cov(patches.T, bias=True), atol=1e-5)


# --- a graph

TYPE = QuantizedType(1.0, 0)
SAMPLES = [np.random.default_rng(seed).integers(0, 4, (1, 2, 4, 4)).astype(np.float32) for seed in range(4)]


def _round(body: str) -> tuple[ir.Model, tuple[str, ...]]:
    """The model after rounding, and the names of what was rounded; x alone is quantized."""
    model, quantized = graph_of(body), graph_of(body)
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    return model, round_weights(model, ir.to_proto(quantized), SAMPLES)


def _weights(model: ir.Model, name: str) -> np.ndarray:
    (conv,) = [node for node in model.graph if node.name == name]
    return weight_and_bias(conv)[0]


KINDS = """
[plain] a = Conv(x, w)  [grouped] b = Conv<group=2>(x, each)  [padded] c = Conv<auto_pad="SAME_UPPER">(x, wide)
[inner] d = Conv(a, w)  e = Add(a, b)  f = Add(c, d)  y = Add(e, f)
"""


def test_what_is_not_a_plain_int8_convolution_is_left_alone_and_named(caplog):
    caplog.set_level(logging.INFO, weight_rounding.__name__)
    model, names = _round(KINDS)
    assert names == ("plain",)
    told = {record.args[0]: record.args[1] for record in caplog.records}
    assert {name: why.split(",")[0] for name, why in told.items()} == {
        "grouped": "it has groups",
        "padded": "it pads by itself (auto_pad)",
        "inner": "it is not INT8",
    }
    before = graph_of(KINDS)
    for name in ("grouped", "padded", "inner"):
        assert np.array_equal(_weights(model, name), _weights(before, name))


def _with_numbers(weight: list, bias: list) -> tuple[ir.Model, ir.Model]:
    """Two copies of a 1x1 convolution of two equal channels and one of its own."""
    made = []
    for _ in range(2):
        model = graph_of("[c] y = Conv(x, w, bias)", "float[1,3,2,2] x")
        for name, numbers in (("w", np.float32(weight)[:, :, None, None]), ("bias", np.float32(bias))):
            model.graph.initializers[name].const_value = ir.tensor(numbers, name=name)
            model.graph.initializers[name].shape = ir.Shape(numbers.shape)
        made.append(model)
    return made[0], made[1]


def _alike(count: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 4, (count, 1, 1, 2, 2)).astype(np.float32) for _ in range(2))
    return list(np.concatenate([first, second, second], axis=2))


@pytest.mark.parametrize(("bias", "expected"), [(0.9 * 2**30, [63, 0, 1]), (1.1 * 2**30, [63, 0, 0])])
def test_a_row_whose_scale_is_raised_for_its_bias_is_left_alone(bias, expected):
    weight = [[63, 0.4, 0.4], [63, 0.4, 0.4]]
    model, quantized = _with_numbers(weight, [0, bias])
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    assert round_weights(model, ir.to_proto(quantized), _alike()) == ("c",)
    found = constant(model.graph[0].inputs[1])[:, :, 0, 0]
    assert found[0].tolist() == [63, 0, 1]
    assert np.rint(found[1]).tolist() == expected
    assert constant(model.graph[0].inputs[2]).tolist() == np.float32([0, bias]).tolist()


def test_the_inputs_are_those_of_the_quantized_file():
    """Channels 1 and 2 are alike, and with a step of 1 both are 0, so nothing can be taken back."""
    model, quantized = _with_numbers([[63, 0.4, 0.4]], [0])
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    samples = [sample * np.float32([1, 0.1, 0.1])[:, None, None] for sample in _alike()]
    round_weights(model, ir.to_proto(quantized), samples)
    assert constant(model.graph[0].inputs[1]).ravel().tolist() == [63, 0, 0]


def test_a_constant_input_counts_nothing_and_takes_nothing_back():
    """Channels 1 and 2 are nearly the same constant: around the mean, neither can take back the other."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 4, (1, 3, 2, 2)).astype(np.float32) for _ in range(6)]
    for sample in samples:
        sample[:, 1:] = 3
        sample[:, 2, 0, 0] = 2
    model, quantized = _with_numbers([[63, 0.4, 0.4]], [0])
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    round_weights(model, ir.to_proto(quantized), samples)
    assert constant(model.graph[0].inputs[1]).ravel().tolist() == [63, 0, 0]


def test_moments_that_do_not_fit_together_are_measured_in_parts(monkeypatch):
    body = "[c] a = Conv(x, w)  [d] b = Conv(x, v)  y = Add(a, b)"
    whole, _ = _round(body)
    monkeypatch.setattr(weight_rounding, "_MOST_BYTES", 1)
    parts, names = _round(body)
    assert names == ("c", "d")
    assert all(np.array_equal(_weights(whole, name), _weights(parts, name)) for name in names)


def test_the_weights_are_multiples_of_their_scales():
    model, quantized = _with_numbers([[15.75, 0.1, 0.1], [-126, 0.8, 0.8]], [0, 0])
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    round_weights(model, ir.to_proto(quantized), _alike())
    assert constant(model.graph[0].inputs[1])[:, :, 0, 0].tolist() == [[15.75, 0, 0.25], [-126, 0, 2]]


def _inputs_seen(monkeypatch, count: int, side: int) -> set[int]:
    """How many pixels of each of `count` images of `side` times `side` are looked at."""
    seen = set()
    monkeypatch.setattr(InputMoments, "update", lambda _, patches: seen.add(len(patches)))
    monkeypatch.setattr(InputMoments, "covariance", lambda _: np.eye(2))
    body, inputs = "[c] y = Conv(x, w)", f"float[1,2,{side},{side}] x"
    model, quantized = graph_of(body, inputs), graph_of(body, inputs)
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    round_weights(model, ir.to_proto(quantized), [np.ones((1, 2, side, side), np.float32)] * count)
    return seen


@pytest.mark.parametrize(
    ("count", "side", "pixels"),
    [(1, 90, 8100), (1, 91, 8192), (3, 64, 2731), (4, 64, 2048), (128, 9, 64), (200, 9, 64), (200, 7, 49)],
)
def test_8192_pixels_are_looked_at_and_64_of_every_image(count, side, pixels, monkeypatch):
    assert _inputs_seen(monkeypatch, count, side) == {pixels}


def test_inputs_of_equal_strength_are_rounded_in_their_order():
    rng = np.random.default_rng(0)
    moments = np.corrcoef(rng.standard_normal((80, 40)) + rng.standard_normal((80, 1)), rowvar=False)
    np.fill_diagonal(moments, 1)
    exact = rng.uniform(-63, 63, (5, 40))
    exact[:, 3] = 63
    expected = _gptq(exact, moments + 0.01 * np.eye(40), np.full(5, 63.0))
    assert np.array_equal(rounded_rows(exact, np.ones(5, np.float32), moments), expected)


@pytest.mark.parametrize(("most", "passes"), [(2 * 4112, 1), (2 * 4112 - 1, 2)])
def test_a_byte_more_than_the_limit_is_another_pass(most, passes, monkeypatch):
    """4·K·(K + 512) bytes for each of two convolutions of K = 2 inputs."""
    calls, original = [], weight_rounding.quantized_inputs
    monkeypatch.setattr(weight_rounding, "_MOST_BYTES", most)
    monkeypatch.setattr(weight_rounding, "quantized_inputs", lambda *given: calls.append(given) or original(*given))
    _round("[c] a = Conv(x, w)  [d] b = Conv(x, v)  y = Add(a, b)")
    assert len(calls) == passes


def _told(model: ir.Model, quantized: onnx.ModelProto, caplog) -> list[str]:
    """Why weights of `model` were not rounded."""
    caplog.set_level(logging.INFO, weight_rounding.__name__)
    size = [1, *(dim.dim_value or 4 for dim in quantized.graph.input[0].type.tensor_type.shape.dim[1:])]
    names = round_weights(model, quantized, [np.ones(size, np.float32)])
    told = [record.args[1] for record in caplog.records]
    assert len(names) + len(told) == 1
    return told


def _written(inputs: str = "float[1,2,4,4] x") -> onnx.ModelProto:
    quantized = graph_of("[c] y = Conv(x, w)", inputs)
    write("openvino", quantized, {"x": TYPE}, weight_bits=7)
    return ir.to_proto(quantized)


@pytest.mark.parametrize("read", [0, 1], ids=["input", "weights"])
@pytest.mark.parametrize("kind", ["stored", "made by another operator"])
def test_a_convolution_is_int8_if_both_that_it_reads_are_dequantized(read, kind, caplog):
    quantized = _written()
    (conv,) = [node for node in quantized.graph.node if node.op_type == "Conv"]
    (maker,) = [node for node in quantized.graph.node if conv.input[read] in node.output]
    if kind == "stored":
        quantized.graph.node.remove(maker)
        stored = np.ones((2, 2, 1, 1) if read else (1, 2, 4, 4), np.float32)
        quantized.graph.initializer.append(onnx.numpy_helper.from_array(stored, conv.input[read]))
    else:
        maker.op_type = "Cast"
    assert _told(graph_of("[c] y = Conv(x, w)"), quantized, caplog) == ["it is not INT8"]


def test_weights_that_are_computed_or_have_other_axes_stay(caplog):
    assert _told(graph_of("n = Neg(w)  [c] y = Conv(x, n)"), _written(), caplog) == [
        "it is not 2-D with constant weights"
    ]
    caplog.clear()
    model = graph_of("[c] y = Conv(x, w)")
    model.graph.initializers["w"].const_value = ir.tensor(np.ones((2, 2, 1), np.float32), name="w")
    assert _told(model, _written(), caplog) == ["it is not 2-D with constant weights"]


@pytest.mark.parametrize(
    ("channels", "weight", "group", "is_left"),
    [(4, (2, 2, 1, 1), 2, True), (1, (2, 1, 1, 1), 1, True), (2, (2, 2, 1, 1), 1, False)],
)
def test_groups_and_single_channels_stay(channels, weight, group, is_left, caplog):
    made = []
    for _ in range(2):
        model = graph_of(f"[c] y = Conv<group={group}>(x, w)", f"float[1,{channels},4,4] x", shapes=False)
        model.graph.initializers["w"].const_value = ir.tensor(np.ones(weight, np.float32), name="w")
        model.graph.initializers["w"].shape = ir.Shape(weight)
        made.append(model)
    write("openvino", made[1], {"x": TYPE}, weight_bits=7)
    told = _told(made[0], ir.to_proto(made[1]), caplog)
    assert told == (["it has groups, or one input channel"] if is_left else [])

"""A linear head becomes a Gemm, whatever it is written as; other products and convolutions stay."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, outputs_of, weights

# Sums of three products near 1 in another order.
ROUNDING = 1e-6

ROWS = {"inputs": "float[N,3] x", "outputs": "float[N,4] y"}
PIXEL = {"inputs": "float[N,3,1,1] x", "outputs": "float[N,4,1,1] y"}
STORED = weights(w=(3, 4), b=(4,), r=(1, 4), k=(4, 3, 1, 1), one=(1,), g=(4, 1, 1, 1), many=(2, 3, 4))


def _rewritten(body, **ends):
    model = model_of(body, STORED, **ends)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["head-to-gemm"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=ROUNDING, atol=ROUNDING)
    return model, report


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("y = MatMul(x, w)", ["Gemm"]),
        ("m = MatMul(x, w)  y = Add(m, b)", ["Gemm"]),
        ("m = MatMul(x, w)  y = Add(b, m)", ["Gemm"]),
        ("m = MatMul(x, w)  y = Add(m, r)", ["Gemm"]),
        ("m = MatMul(x, w)  a = Add(m, b)  y = Sigmoid(a)", ["Gemm", "Sigmoid"]),
        ("m = MatMul(x, w)  y = Add(m, m)", ["Gemm", "Add"]),
        ("m = MatMul(x, w)  y = Add(m, one)", ["Gemm", "Add"]),
    ],
)
def test_rows_times_a_matrix_are_a_gemm(body, after):
    model, report = _rewritten(body, **ROWS)
    assert operators(model) == after
    assert len(report.changed) == 1


def test_a_product_that_is_read_twice_keeps_its_bias_apart():
    ends = {"inputs": "float[N,3] x", "outputs": "float[N,4] y, float[N,4] z"}
    model, _ = _rewritten("m = MatMul(x, w)  y = Add(m, b)  z = Relu(m)", **ends)
    assert operators(model) == ["Gemm", "Add", "Relu"]


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("y = Conv(x, k)", ["Flatten", "Gemm", "Unsqueeze"]),
        ("y = Conv(x, k, b)", ["Flatten", "Gemm", "Unsqueeze"]),
        ("c = Conv(x, k, b)  y = Sigmoid(c)", ["Flatten", "Gemm", "Unsqueeze", "Sigmoid"]),
    ],
)
def test_a_convolution_of_one_pixel_at_the_end_is_a_gemm(body, after):
    model, report = _rewritten(body, **PIXEL)
    assert operators(model) == after
    assert len(report.changed) == 1


def test_a_convolution_behind_a_global_pool_needs_no_known_size():
    model, _ = _rewritten(
        "p = GlobalAveragePool(x)  y = Conv(p, k)", inputs="float[N,3,h,v] x", outputs="float[N,4,1,1] y"
    )
    assert operators(model) == ["GlobalAveragePool", "Flatten", "Gemm", "Unsqueeze"]


@pytest.mark.parametrize(
    ("body", "ends"),
    [
        ("y = MatMul(x, q)", {"inputs": "float[N,3] x, float[3,4] q", "outputs": "float[N,4] y"}),
        ("y = MatMul(x, w)", {"inputs": "float[N,2,3] x", "outputs": "float[N,2,4] y"}),
        ("y = MatMul(x, many)", {"inputs": "float[N,3] x", "outputs": "float[2,N,4] y"}),
        ("y = Conv(x, k)", {"inputs": "float[N,3,2,2] x", "outputs": "float[N,4,2,2] y"}),
        ("y = Conv<pads=[1,1,1,1]>(x, k)", {"inputs": "float[N,3,1,1] x", "outputs": "float[N,4,3,3] y"}),
        ("y = Conv<group=4>(x, g)", {"inputs": "float[N,4,1,1] x", "outputs": "float[N,4,1,1] y"}),
        ("y = Conv(x, q)", {"inputs": "float[N,3,1,1] x, float[4,3,1,1] q", "outputs": "float[N,4,1,1] y"}),
    ],
)
def test_other_products_and_convolutions_stay_with_the_reason(body, ends):
    model, report = _rewritten(body, **ends)
    assert (report.changed, len(report.skipped)) == ((), 1)
    assert operators(model) == [body.split(" = ")[1].split("(")[0].split("<")[0]]


def test_a_convolution_of_one_pixel_inside_the_network_stays():
    """As in squeeze-and-excitation."""
    ends = {"inputs": "float[N,3,1,1] x", "outputs": "float[N,4,1,1] y"}
    _, report = _rewritten("c = Conv(x, k)  y = Relu(c)", **ends)
    assert (report.changed, report.skipped) == ((), ())


@pytest.mark.parametrize(
    ("ending", "shape"),
    [
        ("Cast<to=1>(c)", "N,4,1,1"), ("Flatten(c)", "N,4"), ("Identity(c)", "N,4,1,1"), ("LogSoftmax(c)", "N,4,1,1"),
        ("Reshape(c, rows)", "N,4"), ("Sigmoid(c)", "N,4,1,1"), ("Softmax(c)", "N,4,1,1"), ("Squeeze(c, last)", "N,4"),
        ("Unsqueeze(c, last)", "N,4,1,1,1,1"),
    ],
)  # fmt: skip
def test_an_activation_or_another_shape_may_follow_the_last_convolution(ending, shape):
    stored = f"{STORED}, int64[2] rows = {{-1, 4}}, int64[2] last = {{2, 3}}"
    model = model_of(f"c = Conv(x, k)  y = {ending}", stored, "float[N,3,1,1] x", f"float[{shape}] y")
    before = outputs_of(model)
    (report,) = apply_passes(model, ["head-to-gemm"])
    assert len(report.changed) == 1
    np.testing.assert_allclose(outputs_of(model)[0], before[0], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("body", "ends", "names"),
    [
        ("[fc] m = MatMul(x, w)  [bias] y = Add(m, b)", ROWS, ["fc"]),
        ("m = MatMul(x, w)  y = Add(m, b)", ROWS, ["y"]),
        ("[fc] y = Conv(x, k)", PIXEL, ["fc.flatten", "fc", "fc.unsqueeze"]),
        ("y = Conv(x, k)", PIXEL, ["y.flatten", "y", "y.unsqueeze"]),
    ],
)
def test_the_gemm_takes_the_name_of_the_head(body, ends, names):
    model, _ = _rewritten(body, **ends)
    assert [node.name for node in model.graph] == names
    assert model.graph.outputs[0].name == "y"

"""A Reshape that keeps the batch and flattens the rest is a Flatten; any other stays."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, outputs_of

STORED = (
    "int64 zero = {0}, int64[1] first = {0}, int64[1] second = {1}, int64[1] minus = {-1}, int64[1] rest = {12}, "
    "int64[1] eight = {8}, int64[1] pair = {2}, int64[1] flat = {-1}, int64[2] tail = {12,1}, "
    "int64[2] kept = {0,-1}, int64[2] counted = {-1,12}, int64[2] fixed = {2,12}, int64[2] halves = {-1,6}, "
    "int64[2] split = {-1,3}, int64[2] all = {2,-1}, int64[2] other = {1,-1}, int64[2] none = {0,12}, "
    "int64[3] three = {0,-1,1}"
)
SLICED = "s = Shape(x)  u = Slice(s, {0})  t = Concat<axis=0>(u, minus)  y = Reshape(x, t)"
SIZED = "s = Size(x)  u = Unsqueeze(s, first)  t = Concat<axis=0>(u, second)  y = Reshape(x, t)"
VIEW = "s = Shape({0})  g = Gather(s, zero)  u = Unsqueeze(g, first)  t = Concat<axis=0>(u, {1})"
TWO, ANY = "float[2,3,2,2] x", "float[N,3,2,2] x"


def _rewritten(body, inputs, outputs="float[M,K] y"):
    model = model_of(body, STORED, inputs, outputs)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["reshape-to-flatten"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return operators(model), report


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("y = Reshape(x, kept)", ANY),
        ("y = Reshape(x, counted)", ANY),
        ("y = Reshape(x, all)", TWO),
        ("y = Reshape(x, fixed)", TWO),
        ("y = Reshape<allowzero=1>(x, fixed)", TWO),
        ("y = Reshape<allowzero=1>(x, counted)", ANY),
        (VIEW.format("x", "minus") + " y = Reshape(x, t)", ANY),
        (VIEW.format("x", "rest") + " y = Reshape(x, t)", ANY),
        (VIEW.format("x", "eight") + " y = Reshape(x, t)", "float[N,C,H,W] x"),
        ("y = Reshape(x, kept)", "float[N,C,H,W] x"),
        (SLICED.format("first, second"), ANY),
        ("s = Shape(x)  u = Gather(s, first)  t = Concat<axis=0>(u, minus)  y = Reshape(x, t)", ANY),
    ],
)
def test_a_view_of_rows_is_a_flatten(body, inputs):
    kinds, report = _rewritten(body, inputs)
    assert kinds == ["Flatten"]
    assert len(report.changed) == 1


def test_the_batch_may_be_that_of_an_earlier_tensor():
    body = VIEW.format("x", "minus") + " r = Relu(x)  p = MaxPool<kernel_shape=[1,1]>(r)  y = Reshape(p, t)"
    assert _rewritten(body, ANY)[0] == ["Relu", "MaxPool", "Flatten"]


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("y = Reshape(x, halves)", ANY, "float[M,6] y"),
        ("y = Reshape(x, other)", TWO, "float[1,24] y"),
        ("y = Reshape(x, three)", ANY, "float[N,12,1] y"),
        ("y = Reshape(x, flat)", ANY, "float[M] y"),
        ("y = Reshape(x, q)", f"{TWO}, int64[2] q", "float[2,12] y"),
        ("y = Reshape(x, counted)", "float[N,3,H,W] x", "float[M,12] y"),
        ("y = Reshape(x, split)", "float[2,6] x", "float[4,3] y"),
        (VIEW.format("x", "minus, second") + " y = Reshape(x, t)", ANY, "float[N,12,1] y"),
        (VIEW.format("x", "tail") + " y = Reshape(x, t)", ANY, "float[N,12,1] y"),
        (VIEW.format("x", "q") + " y = Reshape(x, t)", f"{ANY}, int64[k] q", "float[N,M] y"),
        (SLICED.format("first, pair"), ANY, "float[N,3,M] y"),
        (
            SLICED.format("second, pair"),
            ANY,
            "float[3,M] y",
        ),
        (
            SIZED,
            TWO,
            "float[24,1] y",
        ),
        ("y = Reshape<allowzero=1>(x, none)", "float[0,3,2,2] x", "float[0,12] y"),
        (VIEW.format("x", "minus") + " y = Reshape<allowzero=1>(x, t)", ANY, "float[N,12] y"),
        (VIEW.format("k", "minus") + " y = Reshape(x, t)", f"{TWO}, float[2,1] k", "float[2,12] y"),
        ("s = Shape(x)  u = Gather(s, second)  t = Concat<axis=0>(u, minus)  y = Reshape(x, t)", ANY, "float[3,M] y"),
        ("s = Shape(x)  u = Slice(s, second, rest)  y = Reshape(x, u)", ANY, "float[3,2,M] y"),
    ],
)
def test_any_other_reshape_stays(body, inputs, outputs):
    model = model_of(body, STORED, inputs, outputs)
    nodes = operators(model)
    (report,) = apply_passes(model, ["reshape-to-flatten"])
    assert (report.changed, len(report.skipped), operators(model)) == ((), 1, nodes)


@pytest.mark.parametrize(
    "call",
    [
        "AveragePool<kernel_shape=[1,1]>(x)", "BatchNormalization(x, b, b, b, b)", "Cast<to=1>(x)", "Clip(x)",
        "Concat<axis=1>(x, x)", "Conv(x, w)", "Dropout(x)", "Flatten(x)", "GlobalAveragePool(x)", "GlobalMaxPool(x)",
        "Identity(x)", "LeakyRelu(x)", "MaxPool<kernel_shape=[1,1]>(x)", "Relu(x)", "Sigmoid(x)",
    ],
)  # fmt: skip
def test_every_operator_that_keeps_the_batch_is_known(call):
    stored = f"{STORED}, float[3] b = {{1,1,1}}, float[1,3,1,1] w = {{1,1,1}}"
    model = model_of(f"{VIEW.format('x', 'minus')} r = {call}  y = Reshape(r, t)", stored, ANY, "float[N,M] y")
    (report,) = apply_passes(model, ["reshape-to-flatten"])
    assert len(report.changed) == 1


def test_an_operator_that_may_change_the_batch_is_not():
    body = f"{VIEW.format('x', 'minus')} r = Transpose<perm=[1,0,2,3]>(x)  y = Reshape(r, t)"
    model = model_of(body, STORED, ANY, "float[N,M] y")
    (report,) = apply_passes(model, ["reshape-to-flatten"])
    assert (report.changed, len(report.skipped)) == ((), 1)

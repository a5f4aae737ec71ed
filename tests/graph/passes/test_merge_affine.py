"""Chains of scales and shifts become one norm; what is not one per channel stays."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.passes.merge_affine import MergeAffine
from tests.graph.onnx_text import constants, model_of, numbers_of, operators, outputs_of, weights
from tests.graph.passes.checks import assert_tidy

# One rounding of each product and sum of numbers near 1.
ROUNDING = 1e-6

NORM = {"g": (3,), "b": (3,), "m": (3,), "v": (3,)}
PER_CHANNEL = {"s": (3, 1, 1), "t": (1, 3, 1, 1)}
SAME = "float[N,3,5,5] y"


def _merged(model):
    before = outputs_of(model)
    (report,) = apply_passes(model, ["merge-affine"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=ROUNDING, atol=ROUNDING)
    return report


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = BatchNormalization(x, g, b, m, v)  c = Mul(a, s)  y = Add(c, t)", ["BatchNormalization"]),
        ("a = BatchNormalization(x, g, b, m, v)  y = Mul(s, a)", ["BatchNormalization"]),
        ("a = Mul(x, s)  y = Add(a, t)", ["BatchNormalization"]),
        ("a = Sub(x, t)  c = Div(a, s)  d = Mul(c, k)  y = Add(t, d)", ["BatchNormalization"]),
        ("a = Mul(x, s)  y = BatchNormalization(a, g, b, m, v)", ["BatchNormalization"]),
        ("a = Sub(t, x)  y = Div(a, k)", ["BatchNormalization"]),
        ("r = Relu(x)  a = Mul(r, s)  c = Add(a, t)  y = Relu(c)", ["Relu", "BatchNormalization", "Relu"]),
        ("c = Conv(x, w)  y = Add(c, t)", ["Conv", "BatchNormalization"]),
        ("c = Conv(x, w)  y = Mul(c, k)", ["Conv", "BatchNormalization"]),
    ],
)
def test_a_chain_becomes_one_norm(body, after):
    model = model_of(body, weights(**NORM, **PER_CHANNEL, k=(1,), w=(3, 3, 1, 1)), outputs=SAME)
    report = _merged(model)
    assert (len(report.changed), report.skipped) == (1, ())
    assert operators(model) == after


def test_the_numbers_of_the_norm_are_those_of_the_chain():
    numbers = constants(s=[[[2]], [[4]], [[8]]], t=[[[1]], [[2]], [[3]]], k=[16])
    model = model_of("a = Mul(x, s)  c = Add(a, t)  y = Mul(c, k)", numbers, outputs=SAME)
    assert MergeAffine()(model).modified
    assert_tidy(model)
    (norm,) = model.graph
    assert [numbers_of(value).tolist() for value in norm.inputs[1:]] == [
        [32, 64, 128],
        [16, 32, 48],
        [0, 0, 0],
        [1, 1, 1],
    ]
    assert norm.attributes["epsilon"].as_float() == 0
    assert norm.outputs[0].name == "y"


def test_two_chains_are_two_norms():
    body = "a = Mul(x, s)  c = Add(a, t)  r = Relu(c)  d = Mul(r, s)  y = Add(d, t)"
    model = model_of(body, weights(**PER_CHANNEL), outputs=SAME)
    assert len(_merged(model).changed) == 2
    assert operators(model) == ["BatchNormalization", "Relu", "BatchNormalization"]


@pytest.mark.parametrize(
    ("body", "outputs", "skips"),
    [
        ("y = BatchNormalization(x, g, b, m, v)", SAME, 0),
        ("y = Mul(x, s)", SAME, 0),
        ("r = Relu(x)  y = Add(r, t)", SAME, 0),
        ("a = Mul(x, s)  c = Relu(a)  y = Add(c, t)", SAME, 0),
        ("a = Mul(x, p)  y = Add(a, p)", SAME, 0),  # by pixel
        ("a = Mul(x, x)  y = Add(a, x)", SAME, 0),
        ("a = Div(s, x)  y = Add(a, t)", SAME, 0),
        ("a = Mul(x, s)  y = Add(a, t)  z = Relu(a)", f"{SAME}, float[N,3,5,5] z", 0),
        ("a = Mul(x, s)  y = Add(a, t)", f"{SAME}, float[N,3,5,5] a", 0),
        ("c = Conv(x, w)  y = Add(c, t)  z = Relu(c)", f"{SAME}, float[N,3,5,5] z", 0),
        ("a = Mul(x, huge)  y = Mul(a, huge)", SAME, 1),
    ],
)
def test_what_is_not_a_chain_stays(body, outputs, skips):
    stored = weights(**NORM, **PER_CHANNEL, w=(3, 3, 1, 1), p=(5, 5))
    model = model_of(body, f"{stored}, float huge = {{1e30}}", outputs=outputs)
    nodes = operators(model)
    (report,) = apply_passes(model, ["merge-affine"])
    assert (report.changed, len(report.skipped), operators(model)) == ((), skips, nodes)


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        ("a = Mul(x, s)  y = Add(a, t)", "float[N,1,5,5] x", SAME),  # one channel becomes three
        ("a = Mul(x, k)  y = Add(a, k)", "float[N,3] x", "float[N,3] y"),
        ("a = Mul(x, k)  y = Add(a, k)", "float[N,c,5,5] x", "float[N,c,5,5] y"),
    ],
)
def test_a_chain_on_other_axes_or_channels_is_skipped(body, inputs, outputs):
    model = model_of(body, weights(**PER_CHANNEL, k=(1,)), inputs=inputs, outputs=outputs)
    nodes = operators(model)
    (report,) = apply_passes(model, ["merge-affine"])
    assert (report.changed, len(report.skipped), operators(model)) == ((), 1, nodes)


@pytest.mark.parametrize(("prefix", "name"), [("[last] ", "last"), ("", "y")])
def test_the_norm_takes_the_name_of_the_last_node(prefix, name):
    model = model_of(f"[first] a = Mul(x, s)  {prefix}y = Add(a, t)", weights(**PER_CHANNEL), outputs=SAME)
    assert _merged(model).changed == (name,)
    (norm,) = model.graph
    assert norm.name == name
    assert [value.name for value in norm.inputs[1:]] == [
        f"{name}.{role}" for role in ("scale", "shift", "mean", "variance")
    ]

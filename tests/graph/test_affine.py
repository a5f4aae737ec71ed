"""Scales and shifts per channel, from every operator that is one."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.affine import Affine, affine_of
from tests.graph.onnx_text import constants, maker_of, model_of

STORED = constants(
    c=np.reshape([2, 4, 8], (3, 1, 1)),
    r=np.reshape([2, 4, 8], (1, 3, 1, 1)),
    k=4,
    z=np.reshape([2, 0, 8], (3, 1, 1)),
    p=np.reshape([1, 2, 3], (1, 3)),
    q=np.reshape([1, 2, 3, 4, 5, 6], (2, 3)),
    five=np.ones((1, 1, 3, 1, 1)),
    g=[1, 2, 4],
    b=[3, 5, 7],
    m=[1, 1, 1],
    v=[1, 4, 16],
)


def _affine(body, shape="N,3,5,3", axis=1):
    sizes = shape.replace("N", "M")
    model = model_of(body, STORED, f"float[{shape}] x, float[{shape}] w", f"float[{sizes}] y")
    return affine_of(maker_of(model, "y"), axis)


@pytest.mark.parametrize(
    ("body", "scale", "shift"),
    [
        ("y = Mul(x, c)", [2, 4, 8], [0, 0, 0]),
        ("y = Mul(r, x)", [2, 4, 8], [0, 0, 0]),
        ("y = Add(x, c)", [1, 1, 1], [2, 4, 8]),
        ("y = Add(r, x)", [1, 1, 1], [2, 4, 8]),
        ("y = Sub(x, c)", [1, 1, 1], [-2, -4, -8]),
        ("y = Sub(c, x)", [-1, -1, -1], [2, 4, 8]),
        ("y = Div(x, c)", [1 / 2, 1 / 4, 1 / 8], [0, 0, 0]),
        ("y = Mul(x, k)", [4], [0]),
        ("y = Div(x, k)", [1 / 4], [0]),
        ("y = BatchNormalization<epsilon=0.0>(x, g, b, m, v)", [1, 1, 1], [2, 4, 6]),
    ],
)
def test_an_operator_with_a_constant_scales_and_shifts(body, scale, shift):
    found = _affine(body)
    assert (found.source.name, found.scale.tolist(), found.shift.tolist()) == ("x", scale, shift)


@pytest.mark.parametrize(
    "body",
    [
        "y = Div(c, x)",
        "y = Div(x, z)",
        "y = Mul(x, w)",
        "y = Mul(x, p)",  # along the last axis
        "y = Mul(c, k)",
        "y = Relu(x)",
        "y = Pow(x, k)",
        "y = other.Mul(x, c)",
        "y = BatchNormalization(x, g, b, m, w)",
    ],
)
def test_anything_else_does_not(body):
    assert _affine(body) is None


def test_a_constant_of_more_axes_or_of_several_rows_is_not_per_channel():
    assert _affine("y = Mul(x, five)", shape="3,5,3") is None
    assert _affine("y = Mul(x, q)", shape="N,3,2,3") is None


def test_channels_may_stand_on_another_axis():
    assert _affine("y = Mul(x, p)", axis=3).scale.tolist() == [1, 2, 3]
    assert _affine("y = Mul(x, c)", axis=3) is None
    assert _affine("y = Mul(x, k)", axis=3).scale.tolist() == [4]
    assert _affine("y = BatchNormalization(x, g, b, m, v)", axis=3) is None


def test_two_are_one():
    source = _affine("y = Mul(x, k)").source
    first, second = (Affine(source, np.array([s]), np.array([t])) for s, t in ((2.0, 3.0), (5.0, 7.0)))
    both = second.after(first)
    assert (both.source, both.scale.tolist(), both.shift.tolist()) == (source, [10], [22])

"""Concats of a dense block that read the one before are written as flat lists."""

from __future__ import annotations

import pytest

from tests.graph.onnx_text import operators
from tests.graph.passes.checks import skipped
from tests.graph.passes.concats import FLAT, LAYERS, STEPS, block, inputs_of_concats, rewritten_bit_for_bit

NAME = "concat-flat"


def test_steps_are_written_flat():
    model = block(STEPS.replace("y = Concat", "[last] y = Concat"))
    assert rewritten_bit_for_bit(model, NAME).changed == ("Concat", "last")
    assert inputs_of_concats(model) == {"p": ["x", "a"], "q": ["x", "a", "b"], "y": ["x", "a", "b", "d"]}


def test_a_negative_axis_of_channels_is_seen():
    model = block(STEPS.replace("axis=1", "axis=-3"))
    rewritten_bit_for_bit(model, NAME)
    assert inputs_of_concats(model)["y"] == ["x", "a", "b", "d"]


def test_a_concat_that_only_fed_concats_is_dropped():
    model = block(STEPS.replace("Neg(p)", "Neg(x)"), "float[N,12,5,5] y, float[N,3,5,5] z")
    rewritten_bit_for_bit(model, NAME)
    assert inputs_of_concats(model) == {"y": ["x", "a", "b", "d"]}


def test_a_concat_of_one_tensor_is_read_through():
    body = LAYERS + "o = Concat<axis=1>(x)  y = Concat<axis=1>(o, a)"
    model = block(body, "float[N,6,5,5] y")
    rewritten_bit_for_bit(model, NAME)
    assert inputs_of_concats(model) == {"y": ["x", "a"]}


def test_a_flat_block_stays():
    assert skipped(block(FLAT), NAME) == ""


@pytest.mark.parametrize("axis", [2, -1])
def test_other_axes_stay(axis):
    size = "15,5" if axis == 2 else "5,15"
    body = STEPS.replace("axis=1", f"axis={axis}").replace("y = ", "e = ") + "  y = Relu(q)"
    assert skipped(block(body, f"float[N,3,{size}] y"), NAME) == ""


def test_concats_along_mixed_axes_stay():
    body = LAYERS + "p = Concat<axis=2>(x, a)  y = Concat<axis=1>(p, p)"
    assert skipped(block(body, "float[N,6,10,5] y"), NAME) == ""


def test_concats_of_another_domain_are_not_ours():
    model = block(STEPS.replace("= Concat", "= other.Concat"))
    before = operators(model)
    assert skipped(model, NAME) == ""
    assert operators(model) == before

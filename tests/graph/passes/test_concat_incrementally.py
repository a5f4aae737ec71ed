"""Flat Concats of a dense block are written as the one before and a new tensor."""

from __future__ import annotations

import pytest

from tests.graph.passes.checks import skipped
from tests.graph.passes.concats import FLAT, LAYERS, STEPS, block, inputs_of_concats, rewritten_bit_for_bit

NAME = "concat-incremental"


@pytest.mark.parametrize("axis", [-3, 1])
def test_a_flat_block_is_written_in_steps(axis):
    model = block(FLAT.replace("axis=1", f"axis={axis}").replace("y = Concat", "[last] y = Concat"))
    report = rewritten_bit_for_bit(model, NAME)
    assert (report.changed, report.skipped) == (("Concat", "last"), ())
    assert inputs_of_concats(model) == {"p": ["x", "a"], "q": ["p", "b"], "y": ["q", "d"]}


def test_a_block_in_steps_stays():
    assert skipped(block(STEPS), NAME) == ""


def test_a_concat_of_one_tensor_is_not_a_step():
    body = LAYERS + "o = Concat<axis=1>(x)  p = Concat<axis=1>(x, a)  y = Add(o, o)"
    model = block(body, "float[N,3,5,5] y, float[N,6,5,5] p")
    assert skipped(model, NAME) == ""


def test_the_longest_concat_is_the_step():
    body = FLAT.replace("y = Concat", "q2 = Concat<axis=1>(x, a, b)  y = Concat").replace("Neg(p)", "Neg(q2)")
    model = block(body, "float[N,12,5,5] y, float[N,9,5,5] q, float[N,9,5,5] z")
    rewritten_bit_for_bit(model, NAME)
    assert inputs_of_concats(model)["y"] == ["q", "d"]
    assert inputs_of_concats(model)["q2"] == ["p", "b"]


def test_a_concat_that_begins_otherwise_is_not_a_step():
    body = LAYERS + "p = Concat<axis=1>(a, x)  q = Concat<axis=1>(x, a)  y = Concat<axis=1>(x, a, b)  z = Neg(p)"
    model = block(body, "float[N,9,5,5] y, float[N,6,5,5] q, float[N,6,5,5] z")
    rewritten_bit_for_bit(model, NAME)
    assert inputs_of_concats(model) == {"p": ["a", "x"], "q": ["x", "a"], "y": ["q", "b"]}


def test_without_an_earlier_concat_the_list_stays():
    body = LAYERS + "[first] y = Concat<axis=1>(x, a, b, d)  q = Concat<axis=1>(a, b, d)  z = Concat<axis=1>(b, d)"
    model = block(body, "float[N,12,5,5] y, float[N,9,5,5] q, float[N,6,5,5] z")
    why = "no earlier Concat holds its first tensors"
    assert skipped(model, NAME) == f"first: {why}; Concat: {why}"


def test_a_later_concat_is_not_a_step():
    body = LAYERS + "y = Concat<axis=1>(x, a, b)  q = Concat<axis=1>(x, a)"
    model = block(body, "float[N,9,5,5] y, float[N,6,5,5] q")
    assert "no earlier Concat" in skipped(model, NAME)


@pytest.mark.parametrize("axis", [2, -1])
def test_other_axes_stay(axis):
    size = "15,5" if axis == 2 else "5,15"
    body = FLAT.replace("axis=1", f"axis={axis}").replace("y = ", "e = ") + "  y = Relu(q)"
    assert skipped(block(body, f"float[N,3,{size}] y"), NAME) == ""


def test_concats_along_mixed_axes_stay():
    body = LAYERS + "p = Concat<axis=2>(x, a)  y = Concat<axis=1>(p, p)"
    assert skipped(block(body, "float[N,6,10,5] y"), NAME) == ""


def test_concats_of_another_domain_are_not_ours():
    assert skipped(block(FLAT.replace("= Concat", "= other.Concat")), NAME) == ""

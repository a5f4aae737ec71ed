"""Concats of one input go; all others stay."""

from __future__ import annotations

import numpy as np

from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.passes.remove_single_concat import RemoveSingleConcat
from tests.graph.onnx_text import model_of, operators, outputs_of
from tests.graph.passes.checks import assert_tidy

IN, OUT = "float[N,3,5,5] x", "float[N,3,5,5] y"


def _applied(body: str, outputs: str = OUT):
    """Run the pass; outputs must be the very same before and after."""
    model = model_of(body, "", inputs=IN, outputs=outputs)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["remove-single-concat"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return model, report


def test_a_concat_of_one_is_removed():
    model, report = _applied("a = Relu(x)  b = Concat<axis=1>(a)  y = Neg(b)")
    assert operators(model) == ["Relu", "Neg"]
    assert (len(report.changed), report.skipped) == (1, ())


def test_nothing_of_it_is_left():
    model = model_of("a = Relu(x)  b = Concat<axis=1>(a)  y = Neg(b)", "", inputs=IN, outputs=OUT)
    RemoveSingleConcat()(model)
    assert operators(model) == ["Relu", "Neg"]
    assert_tidy(model)


def test_all_its_readers_read_its_input():
    model, _ = _applied("b = Concat<axis=1>(x)  c = Relu(b)  d = Neg(b)  y = Add(c, d)")
    assert operators(model) == ["Relu", "Neg", "Add"]


def test_one_after_the_other_are_removed():
    model, report = _applied("a = Concat<axis=1>(x)  b = Concat<axis=2>(a)  y = Relu(b)")
    assert operators(model) == ["Relu"]
    assert len(report.changed) == 2


def test_a_concat_of_two_stays():
    model, report = _applied("a = Concat<axis=1>(x, x)  y = Relu(a)", "float[N,6,5,5] y")
    assert operators(model) == ["Concat", "Relu"]
    assert (report.changed, report.skipped) == ((), ())


def test_a_concat_whose_output_leaves_the_graph_stays():
    model, report = _applied("a = Relu(x)  y = Concat<axis=1>(a)")
    assert operators(model) == ["Relu", "Concat"]
    assert report.skipped == ("Concat: its output leaves the graph",)


def test_a_concat_of_another_domain_stays():
    model = model_of("a = other.Concat<axis=1>(x)  y = Relu(a)", "", inputs=IN, outputs=OUT)
    (report,) = apply_passes(model, ["remove-single-concat"])
    assert (operators(model), report.changed) == (["Concat", "Relu"], ())

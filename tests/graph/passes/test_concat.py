"""Two ways to write the Concats of a dense block, and back."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, outputs_of
from tests.graph.passes.checks import skipped

FLAT, INCREMENTAL = "concat-flat", "concat-incremental"
LAYERS = "a = Neg(x)  b = Relu(x)  d = Sigmoid(x)  "
FLAT_BODY = LAYERS + "p = Concat<axis=1>(x, a)  q = Concat<axis=1>(x, a, b)  y = Concat<axis=1>(x, a, b, d)  z = Neg(p)"
STEPS_BODY = LAYERS + "p = Concat<axis=1>(x, a)  q = Concat<axis=1>(p, b)  y = Concat<axis=1>(q, d)  z = Neg(p)"
OUTPUTS = "float[N,12,5,5] y, float[N,9,5,5] q, float[N,6,5,5] z"


def _model(body, outputs=OUTPUTS):
    return model_of(body, "", outputs=outputs)


def _inputs(model):
    """What each Concat reads, by its output."""
    concats = [node for node in model.graph if node.op_type == "Concat"]
    return {node.outputs[0].name: [value.name for value in node.inputs] for node in concats}


def _bit_identical(model, name):
    before = outputs_of(model)
    (report,) = apply_passes(model, [name])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return report


def test_a_flat_block_is_written_in_steps():
    model = _model(FLAT_BODY)
    assert len(_bit_identical(model, INCREMENTAL).changed) == 2
    assert _inputs(model) == {"p": ["x", "a"], "q": ["p", "b"], "y": ["q", "d"]}


def test_steps_are_written_flat():
    model = _model(STEPS_BODY)
    assert len(_bit_identical(model, FLAT).changed) == 2
    assert _inputs(model) == {"p": ["x", "a"], "q": ["x", "a", "b"], "y": ["x", "a", "b", "d"]}


@pytest.mark.parametrize("axis", [-3, 1])
def test_a_negative_axis_of_channels_is_seen(axis):
    flat, steps = _model(FLAT_BODY.replace("axis=1", f"axis={axis}")), _model(STEPS_BODY)
    _bit_identical(flat, INCREMENTAL)
    assert _inputs(flat) == _inputs(steps)


def test_a_concat_that_only_fed_concats_is_dropped():
    model = _model(STEPS_BODY.replace("Neg(p)", "Neg(x)"), "float[N,12,5,5] y, float[N,3,5,5] z")
    _bit_identical(model, FLAT)
    assert _inputs(model) == {"y": ["x", "a", "b", "d"]}


def test_a_concat_of_one_tensor_is_not_a_step():
    body = LAYERS + "o = Concat<axis=1>(x)  p = Concat<axis=1>(x, a)  y = Add(o, o)"
    model = _model(body, "float[N,3,5,5] y, float[N,6,5,5] p")
    assert skipped(model, INCREMENTAL) == ""


def test_the_longest_concat_is_the_step():
    body = FLAT_BODY.replace("y = Concat", "q2 = Concat<axis=1>(x, a, b)  y = Concat").replace("Neg(p)", "Neg(q2)")
    model = _model(body, "float[N,12,5,5] y, float[N,9,5,5] q, float[N,9,5,5] z")
    _bit_identical(model, INCREMENTAL)
    assert _inputs(model)["y"] == ["q", "d"]
    assert _inputs(model)["q2"] == ["p", "b"]


def test_without_an_earlier_concat_the_list_stays():
    body = LAYERS + "y = Concat<axis=1>(x, a, b, d)  q = Concat<axis=1>(a, b, d)"
    model = _model(body, "float[N,12,5,5] y, float[N,9,5,5] q")
    assert skipped(model, INCREMENTAL).count("no earlier Concat holds its first tensors") == 2


def test_a_later_concat_is_not_a_step():
    body = LAYERS + "y = Concat<axis=1>(x, a, b)  q = Concat<axis=1>(x, a)"
    model = _model(body, "float[N,9,5,5] y, float[N,6,5,5] q")
    assert "no earlier Concat" in skipped(model, INCREMENTAL)


@pytest.mark.parametrize("name", [FLAT, INCREMENTAL])
@pytest.mark.parametrize("axis", [2, -1])
def test_other_axes_are_skipped(name, axis):
    sizes = "15,5" if axis == 2 else "5,15"
    for body in (FLAT_BODY, STEPS_BODY):
        text = body.replace("axis=1", f"axis={axis}").replace("y = ", "e = ") + "  y = Relu(q)"
        model = _model(text, f"float[N,3,{sizes}] y")
        assert skipped(model, name) == ""


@pytest.mark.parametrize("name", [FLAT, INCREMENTAL])
def test_steps_along_mixed_axes_are_skipped(name):
    body = LAYERS + "p = Concat<axis=2>(x, a)  y = Concat<axis=1>(p, p)"
    assert skipped(_model(body, "float[N,6,10,5] y"), name) == ""


@pytest.mark.parametrize("name", [FLAT, INCREMENTAL])
def test_concats_of_another_domain_are_not_ours(name):
    for body in (FLAT_BODY, STEPS_BODY):
        model = _model(body.replace("= Concat", "= other.Concat"))
        (report,) = apply_passes(model, [name])
        assert (report.changed, operators(model)) == ((), operators(_model(body)))

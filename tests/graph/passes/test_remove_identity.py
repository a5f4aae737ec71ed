"""Nodes that hand their input on go; those that do something, or whose place is needed, stay."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, outputs_of

PADS = (
    "int64[8] none = {0,0,0,0,0,0,0,0}, int64[8] some = {0,0,1,1,0,0,1,1}, int64[2] halves = {2,1}, "
    "float ratio = {0.5}, bool training = {0}"
)
SAME = "float[N,3,5,5] y"


def _removed(body, outputs=SAME):
    model = model_of(body, PADS, outputs=outputs)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["remove-identity"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return operators(model), report


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(x)  y = Relu(a)",
        "a = Dropout(x)  y = Relu(a)",
        "a, unread = Dropout(x)  y = Relu(a)",
        "a = Pad(x, none)  y = Relu(a)",
        "a = Cast<to=1>(x)  y = Relu(a)",
        "a = Relu(x)  y = Identity(a)",
        "a = Identity(x)  b = Identity(a)  c = Relu(b)  y = Identity(c)",
    ],
)
def test_a_node_without_effect_is_removed(body):
    kinds, report = _removed(body)
    assert kinds == ["Relu"]
    assert report.skipped == ()


@pytest.mark.parametrize(
    ("body", "outputs", "skips"),
    [
        ("y = Pad(x, some)", "float[N,3,7,7] y", 0),
        ("y = Cast<to=10>(x)", "float16[N,3,5,5] y", 0),
        ("y, z = Dropout(x)", f"{SAME}, bool[N,3,5,5] z", 1),
        ("y = Dropout(x, ratio, training)", SAME, 0),
        ("k, a = Split<axis=1>(x, halves)  y = Identity(a)", "float[N,1,5,5] y", 1),
        ("y = Identity(x)", SAME, 1),
        ("a = Relu(x)  y = Identity(a)  z = Relu(a)", f"{SAME}, float[N,3,5,5] z", 1),
        ("a = Relu(x)  y = Identity(a)", f"{SAME}, float[N,3,5,5] a", 1),
    ],
)
def test_a_node_that_is_needed_stays(body, outputs, skips):
    kinds, report = _removed(body, outputs)
    assert len(report.skipped) == skips
    assert report.changed == ()
    assert len(kinds) == body.count(" = ")


def test_a_pad_of_an_old_operator_set_says_nothing_in_its_inputs():
    header = '<ir_version: 5, opset_import: ["" : 10]>'
    model = model_of("y = Pad<pads=[0,0,0,0,0,0,0,0]>(x)", "float k = {1}", outputs=SAME, header=header)
    (report,) = apply_passes(model, ["remove-identity"])
    assert (report.changed, report.skipped) == ((), ())

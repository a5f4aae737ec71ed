"""What depends on constants only is stored; what does not, and quantized weights, stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.passes.fold_constants import MOST_ELEMENTS
from tests.graph.onnx_text import maker_of, model_of, numbers_of, operators, outputs_of

STORED = (
    "float[3] w = {1, 2, 4}, int64[2] axes = {1, 2}, int64[4] shape = {4,3,1,1}, float[1] half = {0.5}, "
    "int8[3] q = {1,2,3}, float one = {1}, int8 z = {0}, int64[1] many = {9}"
)
SAME = "float[N,3,5,5] y"


def _folded(body, outputs=SAME):
    model = model_of(body, STORED, outputs=outputs)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["fold-constants"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    return model, report


@pytest.mark.parametrize(
    ("body", "outputs", "after", "folded"),
    [
        ("u = Unsqueeze(w, axes)  y = Mul(x, u)", SAME, ["Mul"], 1),
        ("u = Unsqueeze(w, axes)  h = Mul(u, half)  k = Sqrt(h)  y = Add(x, k)", SAME, ["Add"], 3),
        ("c = Constant<value_float=2.0>()  k = Mul(c, half)  y = Add(x, k)", SAME, ["Add"], 1),
        ("k = ConstantOfShape<value=float[1] {0.5}>(shape)  y = Conv(x, k)", "float[N,4,5,5] y", ["Conv"], 1),
        ("u = Unsqueeze(w, axes)  a = Mul(x, u)  y = Add(a, u)", SAME, ["Mul", "Add"], 1),
    ],
)
def test_a_node_that_reads_constants_is_computed(body, outputs, after, folded):
    model, report = _folded(body, outputs)
    assert operators(model) == after
    assert (len(report.changed), report.skipped) == (folded, ())


def test_what_was_computed_keeps_its_name():
    model, _ = _folded("u = Unsqueeze(w, axes)  y = Mul(x, u)")
    value = maker_of(model, "y").inputs[1]
    assert value.name == "u"
    assert numbers_of(value).tolist() == [[[1]], [[2]], [[4]]]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("c = Constant<value_float=2.0>()  y = Add(x, c)", SAME),
        ("k = DequantizeLinear(q, one, z)  u = Unsqueeze(k, axes)  y = Mul(x, u)", SAME),
        ("y = Unsqueeze(w, axes)", "float[3,1,1] y"),
        ("s = Shape(x)  y = ConstantOfShape(s)", SAME),
        ("u = Unsqueeze(w, axes)  y = Relu(x)", SAME),
        ("r = RandomNormal<shape=[3,1,1], seed=1.0>()  a = Mul(r, half)  d = Sub(a, a)  y = Add(x, d)", SAME),
    ],
)
def test_what_is_needed_as_it_is_stays(body, outputs):
    model = model_of(body, STORED, outputs=outputs)
    (report,) = apply_passes(model, ["fold-constants"])
    assert report.changed == ()


@pytest.mark.parametrize("size", [MOST_ELEMENTS + 1, 2**62])
def test_a_tensor_too_large_for_memory_is_refused(size):
    stored = f"int64[1] many = {{{size}}}"
    model = model_of("k = ConstantOfShape(many)  y = Add(x, k)", stored, outputs="float[a,b,c,d] y")
    with pytest.raises(ModelFileError) as caught:
        apply_passes(model, ["fold-constants"])
    assert caught.value.subject == "k"


@pytest.mark.parametrize(
    "expression",
    [
        "Add(w, w)", "Cast<to=1>(w)", "Concat<axis=0>(w, w)", "Div(w, half)", "Flatten<axis=0>(w)", "Gather(w, axes)",
        "Identity(w)", "Mul(w, w)", "Neg(w)", "Pow(w, half)", "Reciprocal(w)", "Reshape(w, column)", "Shape(w)",
        "Slice(w, first, last)", "Sqrt(w)", "Squeeze(w)", "Sub(w, half)", "Transpose(w)", "Unsqueeze(w, axes)",
    ],
)  # fmt: skip
def test_every_operator_of_constants_is_computed(expression):
    stored = f"{STORED}, int64[2] column = {{3, 1}}, int64[1] first = {{0}}, int64[1] last = {{2}}"
    model = model_of(f"k = {expression}  c = Cast<to=1>(k)  y = other.Own(x, c)", stored)
    (report,) = apply_passes(model, ["fold-constants"])
    assert len(report.changed) == 2
    assert operators(model) == ["Own"]


def test_changed_nodes_are_called_by_their_names():
    model = model_of("[sum] k = Add(w, w)  u = Unsqueeze(k, axes)  y = Mul(x, u)", STORED, outputs=SAME)
    (report,) = apply_passes(model, ["fold-constants"])
    assert report.changed == ("sum", "u")

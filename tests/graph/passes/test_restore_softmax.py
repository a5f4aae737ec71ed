"""What the converter puts around a Softmax goes where it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, outputs_of

WRAPPED = "s = Shape({0})  f = Flatten({0})  k = {1}(f)  y = Reshape(k, s)"
ROWS, PIXEL = ("float[N,4] x", "float[N,4] y"), ("float[N,4,1,1] x", "float[N,4,1,1] y")


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Softmax<axis=1>"])
@pytest.mark.parametrize(("inputs", "outputs"), [ROWS, PIXEL])
def test_a_softmax_over_scores_is_one_node(kind, inputs, outputs):
    model = model_of(WRAPPED.format("x", kind), "", inputs, outputs)
    before = outputs_of(model)
    (report,) = apply_passes(model, ["restore-softmax"])
    assert (len(report.changed), operators(model)) == (1, [kind.partition("<")[0]])
    np.testing.assert_allclose(outputs_of(model), before, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (WRAPPED.format("x", "Softmax"), 2),
        ("y = Softmax(x)", 1),
        ("s = other.Shape(x)  f = Flatten(x)  k = Softmax(f)  y = Reshape(k, s)", 1),
        ("r = Relu(x)  s = Shape(r)  f = Flatten(x)  k = Softmax(f)  y = Reshape(k, s)", 1),
        ("s = Shape(x)  f = Flatten<axis=2>(x)  k = Softmax(f)  y = Reshape(k, s)", 1),
        ("s = Shape(x)  f = Flatten(x)  k = Softmax<axis=0>(f)  y = Reshape(k, s)", 1),
        ("s = Shape(x)  f = Flatten(x)  k = Softmax(f)  r = Relu(k)  y = Reshape(r, s)", 1),
    ],
)
def test_another_softmax_stays(body, size):
    shape = f"float[N,4,{size},1]"
    model = model_of(body, "", f"{shape} x", f"{shape} y")
    nodes = operators(model)
    (report,) = apply_passes(model, ["restore-softmax"])
    assert (report.changed, len(report.skipped), operators(model)) == ((), 1, nodes)

"""Writing a norm and its ReLU as a clip whose scale and shift the next convolution absorbs."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from tests.graph.onnx_text import model_of, operators, weights
from tests.graph.passes.checks import rewritten, skipped

NAME = "norm-to-clip"
NORM = {"beta": (3,), "mean": (3,), "var": (3,), "w": (4, 3, 1, 1)}
GAMMAS = {"positive": "{1.0, 2.0, 0.5}", "negative": "{-1.0, -2.0, -0.5}", "mixed": "{1.0, -2.0, 0.0}"}
BODY = "n = BatchNormalization(x, gamma, beta, mean, var)  r = Relu(n)  y = Conv(r, w)"


def _model(gamma: str, body: str = BODY, outputs: str = "float[N,4,5,5] y"):
    return model_of(body, f"float[3] gamma = {GAMMAS[gamma]}, {weights(**NORM, b=(4,))}", outputs=outputs)


@pytest.mark.parametrize(("gamma", "clips"), [("positive", ["Max"]), ("negative", ["Min"]), ("mixed", ["Max", "Min"])])
def test_channels_are_clipped_from_below_or_above_by_the_sign_of_their_scale(gamma, clips):
    model = _model(gamma)
    rewritten(model, NAME)
    assert operators(model) == [*clips, "Conv"]


def test_a_bias_is_kept():
    model = _model("mixed", BODY.replace("(r, w)", "(r, w, b)"))
    rewritten(model, NAME)


def test_the_scale_passes_an_average_pool():
    pool = "p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(r)"
    model = _model("mixed", BODY.replace("y = Conv(r", f"{pool}  y = Conv(p"), "float[N,4,2,2] y")
    rewritten(model, NAME)
    assert operators(model) == ["Max", "Min", "AveragePool", "Conv"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (BODY.replace("Conv(r, w)", "Conv<pads=[1,1,1,1]>(r, w)"), "unpadded 1x1"),
        (
            BODY.replace("y = Conv(r, w)", "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r) y = Conv(p, w)"),
            "1x1",
        ),
        (BODY.replace("y = Conv(r, w)", "c = Conv(r, w)  m = ReduceMean(r)  y = Add(c, m)"), "1x1"),
        (BODY.replace("Relu", "Sigmoid"), "Relu"),
        (BODY.replace("r = Relu(n)", "r0 = Relu(n)  r = Add(r0, n)"), "Relu"),
    ],
    ids=["padded conv", "padded pool", "two readers of the relu", "no relu", "two readers of the norm"],
)
def test_a_near_miss_is_skipped(body, reason):
    shape = "float[N,4,7,7] y" if "Conv<pads" in body else "float[N,4,5,5] y"
    assert reason in skipped(_model("positive", body, shape), NAME)


def test_a_scale_of_almost_nothing_gives_finite_bounds():
    model = _model("positive")
    model.graph.initializers["gamma"].const_value.numpy()[:] = np.float32(1e-38)
    apply_passes(model, [NAME])
    assert all(np.isfinite(value.const_value.numpy()).all() for value in model.graph.initializers.values())

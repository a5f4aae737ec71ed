"""Writing a norm and its ReLU as a clip whose scale and shift the next convolution absorbs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.passes.norm_to_clip import NormToClip
from densenet_deploy.graph.tensor_changes import read_tensor_changes
from tests.graph.onnx_text import constants, maker_of, model_of, numbers_of, operators, value_named
from tests.graph.passes.checks import assert_tidy, rewritten, skipped

LARGEST = float(np.finfo(np.float32).max)
# With ε = 1 the scales are 1, -1, 0 and 0, and the shifts 8 - 32 = -24, 16 + 64 = 80, 3 and -3.
NUMBERS = {
    "g": [2, -4, 0, 0],
    "b": [8, 16, 3, -3],
    "m": [32, 64, 5, 5],
    "v": [3, 15, 0, 0],
    "w": np.reshape([[1, 2, 4, 8], [16, 32, 64, 128]], (2, 4, 1, 1)),
    "bias": [1000, 2000],
}
NORM = "n = BatchNormalization<epsilon=1.0>(x, g, b, m, v)  "
BODY = NORM + "[act] r = Relu(n)  y = Conv(r, w, bias)"
INPUT, OUTPUT = "float[N,4,5,5] x", "float[N,2,5,5] y"


def _model(body: str = BODY, outputs: str = OUTPUT, inputs: str = INPUT, **numbers: object) -> ir.Model:
    return model_of(body, constants(**{**NUMBERS, **numbers}), inputs, outputs)


def _clipped(model: ir.Model) -> ir.Node:
    """Run the pass, which must rewrite one norm and leave nothing of it, and return the convolution."""
    outcome = NormToClip()(model)
    assert (len(outcome.changed), outcome.skipped) == (1, ())
    assert_tidy(model)
    return maker_of(model, "y")


def _bounds(model: ir.Model, name: str) -> list[float]:
    return numbers_of(model.graph.initializers[name]).ravel().tolist()


def test_each_channel_is_clipped_on_the_side_of_its_sign_and_the_conv_absorbs_scale_and_shift():
    model = _model()
    conv = _clipped(model)
    assert operators(model) == ["Max", "Min", "Conv"]
    assert _bounds(model, "act.max") == [24, -LARGEST, -LARGEST, -LARGEST]
    assert _bounds(model, "act.min") == [LARGEST, 80, LARGEST, LARGEST]
    assert numbers_of(model.graph.initializers["act.max"]).shape == (4, 1, 1)
    assert numbers_of(conv.inputs[1]).tolist() == [[[[1]], [[-2]], [[0]], [[0]]], [[[16]], [[-32]], [[0]], [[0]]]]
    # a dead channel is the ReLU of its shift: 3 and 0
    assert numbers_of(conv.inputs[2]).tolist() == [1000 - 24 + 160 + 12, 2000 - 384 + 2560 + 192]
    assert [value.name for value in conv.inputs] == ["r:min", "w.absorbed.weight", "w.absorbed.bias"]


@pytest.mark.parametrize(
    ("gamma", "clip", "bounds"),
    [([1, 2, 4, 8], "Max", [-8, -8, -0.75, 0.375]), ([-1, -2, -4, -8], "Min", [8, 8, 0.75, -0.375])],
)
def test_norms_of_one_sign_are_clipped_once(gamma, clip, bounds):
    model = _model(BODY.replace("[act] ", ""), g=gamma, m=[0] * 4, v=[0] * 4, b=[8, 16, 3, -3])
    _clipped(model)
    assert operators(model) == [clip, "Conv"]
    name = f"r.{clip.lower()}"  # without a name the Relu is called by its output
    assert _bounds(model, name) == bounds
    node = maker_of(model, f"r:{clip.lower()}")
    assert (node.name, node.inputs[0].name, node.outputs[0].shape) == (name, "x", value_named(model, "x").shape)


def test_channels_that_are_all_dead_leave_a_bias_and_no_clip():
    model = _model(g=[0] * 4)
    conv = _clipped(model)
    assert operators(model) == ["Conv"]
    assert conv.inputs[0].name == "x"
    assert not numbers_of(conv.inputs[1]).any()
    assert numbers_of(conv.inputs[2]).tolist() == [1000 + 8 + 32 + 12, 2000 + 128 + 512 + 192]
    assert not model.metadata_props


@pytest.mark.parametrize(
    ("gamma", "beta", "bound"),
    [
        (2.0**-96, 1, -(2.0**96)),
        (2.0**-97, 1, None),
        (2.0**-97, -1, None),
        (2.0**-10, -1, 2.0**10),
        (2.0**-126, 2.0**-60, -(2.0**66)),
    ],
)
def test_a_scale_whose_threshold_float32_does_not_need_counts_as_zero(gamma, beta, bound):
    """One channel is `gamma` · x + `beta`; the others are x."""
    model = _model(g=[1, gamma, 1, 1], b=[0, beta, 0, 0], m=[0] * 4, v=[0] * 4)
    conv = _clipped(model)
    assert _bounds(model, "act.max") == [0, -LARGEST if bound is None else bound, 0, 0]
    assert numbers_of(conv.inputs[1]).ravel()[1] == (0 if bound is None else 2 * np.float32(gamma))


def test_a_small_negative_scale_keeps_its_threshold():
    model = _model(g=[1, -(2.0**-10), 1, 1], b=[0, 1, 0, 0], m=[0] * 4, v=[0] * 4)
    _clipped(model)
    assert _bounds(model, "act.min") == [LARGEST, 2.0**10, LARGEST, LARGEST]


POOL = "AveragePool<kernel_shape=[2,2], strides=[2,2]>"


def test_the_scale_passes_average_pools_and_each_tensor_says_what_it_was():
    body = BODY.replace("y = Conv(r", f"p = {POOL}(r)  q = {POOL}(p)  y = Conv(q")
    model = _model(body, "float[N,2,2,2] y", "float[N,4,8,8] x")
    conv = _clipped(model)
    assert operators(model) == ["Max", "Min", "AveragePool", "AveragePool", "Conv"]
    assert [value.name for node in model.graph for value in node.outputs][1:4] == ["r:min", "p:clipped", "q:clipped"]
    assert conv.inputs[0].name == "q:clipped"
    changes = read_tensor_changes(model.metadata_props)
    assert {name: change.of for name, change in changes.items()} == {"r:min": "r", "p:clipped": "p", "q:clipped": "q"}
    assert all(change.moved for change in changes.values())


@pytest.mark.parametrize(
    "body", [BODY, BODY.replace(", bias", ""), BODY.replace("y = Conv(r", f"p = {POOL}(r)  y = Conv(p")]
)
def test_what_comes_out_stays(body):
    model = _model(body, "float[N,2,2,2] y" if "Pool" in body else OUTPUT, m=[0.5, -0.5, 5, 5], b=[0.5, 0.25, 3, -3])
    rewritten(model, NormToClip())


SKIPPED = {
    "a padded conv": (BODY.replace("Conv(r", "Conv<pads=[1,1,1,1]>(r"), "float[N,2,7,7] y", "unpadded 1x1"),
    "a 3x3 conv": (BODY.replace("r, w, bias", "r, wide"), "float[N,2,3,3] y", "unpadded 1x1"),
    "a conv of groups": (BODY.replace("Conv(r, w", "Conv<group=2>(r, half"), OUTPUT, "unpadded 1x1"),
    "a conv with weights from outside": (BODY.replace("r, w, bias", "r, fed"), OUTPUT, "unpadded 1x1"),
    "a conv of another domain": (BODY.replace("= Conv", "= other.Conv"), OUTPUT, "unpadded 1x1"),
    "a conv that reads it as weights": (BODY.replace("Conv(r, w, bias)", "Conv(i, r)"), "float[1,N,1,1] y", "1x1"),
    "another reader than a conv": (BODY.replace("Conv(r, w, bias)", "Neg(r)"), "float[N,4,5,5] y", "1x1"),
    "a padded pool": (
        BODY.replace("y = Conv(r", "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)  y = Conv(p"), OUTPUT, "1x1",
    ),
    "a Relu that leaves the graph": (BODY, f"{OUTPUT}, float[N,4,5,5] r", "1x1"),
    "two readers of the Relu": (BODY + "  z = Neg(r)", f"{OUTPUT}, float[N,4,5,5] z", "1x1"),
    "two readers of the norm": (BODY + "  z = Neg(n)", f"{OUTPUT}, float[N,4,5,5] z", "only reader is not a Relu"),
    "another activation": (BODY.replace("Relu", "Sigmoid"), OUTPUT, "only reader is not a Relu"),
    "a Relu of another domain": (BODY.replace("Relu", "other.Relu"), OUTPUT, "only reader is not a Relu"),
    "numbers from outside": (BODY.replace("(x, g", "(x, four"), OUTPUT, "float32 constants"),
    "a norm in training": (BODY.replace("epsilon=1.0", "training_mode=1"), OUTPUT, "training"),
    "an unknown number of axes": (BODY.replace("(x, g", "(s, g").replace("n =", "s = Sigmoid(x)  n ="), OUTPUT, "axes"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "outputs", "why"), SKIPPED.values(), ids=SKIPPED)
def test_a_near_miss_is_skipped(body, outputs, why):
    inputs = f"{INPUT}, float[2,4,1,1] fed, float[4] four, float[1,4,5,5] i"
    model = _model(body, outputs, inputs, wide=np.ones((2, 4, 3, 3)), half=np.ones((2, 2, 1, 1)))
    assert why in skipped(model, NormToClip())


def test_signals_are_skipped():
    model = _model("n = BatchNormalization(x, g, b, m, v)  r = Relu(n)  y = Conv(r, w1)", "float[N,2,5] y",
                   "float[N,4,5] x", w1=np.ones((2, 4, 1)))  # fmt: skip
    assert "four axes" in skipped(model, NormToClip())


def test_norms_of_another_domain_are_not_ours():
    assert skipped(_model(BODY.replace("= Batch", "= other.Batch")), NormToClip()) == ""

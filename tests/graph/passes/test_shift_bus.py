"""Channels of a dense block that begin at zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.passes.shift_bus import ShiftBus
from densenet_deploy.graph.tensor_changes import read_tensor_changes
from tests.graph.onnx_text import model_of, operators, weights
from tests.graph.passes.checks import rewritten, skipped

# Two segments, x0 (3 channels) and x1 (2), read as a whole by a norm, unless a test says otherwise.
SHAPES = {
    "w0": (3, 3, 1, 1), "b0": (3,), "w1": (2, 3, 1, 1), "gamma": (5,), "beta": (5,), "mean": (5,), "var": (5,),
    "v": (4, 5, 1, 1), "u": (4, 5, 3, 3), "g": (10, 1, 1, 1), "mul": (5, 1, 1),
    "n1": (2,), "n2": (2,), "n3": (2,), "n4": (2,),
}  # fmt: skip
MAKERS = "x0 = Conv(x, w0, b0)  x1 = Conv(x, w1)  s = Concat<axis=1>(x0, x1)  "
NORM = "y = BatchNormalization(s, gamma, beta, mean, var)"
OUTPUT = "float[N,5,5,5] y"
LOWEST = {"x0": np.array([-2, 0.5, -7], np.float32), "x1": np.array([-0.3, 0], np.float32)}


def _model(body=MAKERS + NORM, outputs=OUTPUT):
    return model_of(body, weights(**SHAPES), outputs=outputs)


@pytest.mark.parametrize(
    ("reader", "channels"),
    [(NORM, 5), ("y = Conv(s, v)", 4), ("y = Conv<group=5>(s, g)", 10)],
    ids=["norm", "1x1 conv", "depthwise conv"],
)
def test_every_reader_takes_the_shift_away(reader, channels):
    model = _model(MAKERS + reader, f"float[N,{channels},5,5] y")
    kinds = operators(model)
    report = rewritten(model, ShiftBus(LOWEST))
    assert (report.name, report.changed, operators(model)) == ("shift-bus", ("s",), kinds)


@pytest.mark.parametrize("lowest", [([-2, 0, 7], [0, -0.5]), ([0, 0, 0], [-1, -4]), ([-2, -3, 1], [0, 0])])
def test_channels_and_segments_that_begin_at_zero_stay_there(lowest):
    model = _model()
    rewritten(model, ShiftBus({"x0": np.float32(lowest[0]), "x1": np.float32(lowest[1])}))
    changes = read_tensor_changes(model.metadata_props)
    assert changes["s:shifted"].offset == (*lowest[0], *lowest[1])
    made = {f"x{index}:shifted": numbers for index, numbers in enumerate(lowest) if any(numbers)}
    assert {name: list(change.offset) for name, change in changes.items() if name != "s:shifted"} == made


def test_an_unpadded_3x3_conv_takes_it_away_too():
    rewritten(_model(MAKERS + "y = Conv(s, u)", "float[N,4,3,3] y"), ShiftBus(LOWEST))


def test_a_norm_that_makes_a_segment_is_shifted():
    body = MAKERS.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = BatchNormalization(k, n1, n2, n3, n4)") + NORM
    rewritten(_model(body), ShiftBus(LOWEST))


def test_a_segment_after_a_relu_stays_where_it_is_and_the_others_move():
    body = MAKERS.replace("x0 = Conv(x, w0, b0)", "c = Conv(x, w0, b0)  x0 = Relu(c)") + NORM
    model = _model(body)
    rewritten(model, ShiftBus(LOWEST | {"x0": np.array([0, 0.5, 0], np.float32)}))
    names = [value.name for node in model.graph for value in node.outputs]
    assert names[:4] == ["c", "x0", "x1:shifted", "s:shifted"]


REASONS = {
    "a reader pads": (MAKERS + "y = Conv<pads=[1,1,1,1]>(s, u)", "float[N,4,5,5] y", "pads its input"),
    "a reader multiplies": (MAKERS + "y = Mul(s, mul)", OUTPUT, "is not known to undo a shift"),
    "it leaves the graph": (MAKERS + NORM, f"{OUTPUT}, float[N,5,5,5] s", "s leaves the graph"),
    "a Relu makes a negative segment": (
        MAKERS.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = Relu(k)") + NORM, OUTPUT, "a Relu makes it",
    ),
    "a sum makes a segment": (
        MAKERS.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = Add(k, k)") + NORM, OUTPUT, "is made by Add",
    ),
    "a padded average makes a segment": (
        MAKERS.replace(
            "x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(k)"
        ) + NORM, OUTPUT, "does not average whole windows",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "outputs", "why"), REASONS.values(), ids=REASONS)
def test_a_bus_that_cannot_be_shifted_whole_is_skipped(body, outputs, why):
    model = _model(body, outputs)
    for value in (value for node in model.graph for value in node.outputs if value.name == "x1"):
        value.shape = ir.Shape(["N", 2, 5, 5])
    assert why in skipped(model, ShiftBus(LOWEST))


@pytest.mark.parametrize(
    "lowest",
    [
        {},
        {"x0": LOWEST["x0"]},
        {**LOWEST, "x1": np.array([-1, np.inf])},
        {**LOWEST, "x1": np.array([-1, -1, -1])},
        {**LOWEST, "x1": np.array([[-1, -1]])},
    ],
)
def test_without_smallest_values_nothing_changes(lowest):
    assert "no smallest value of each channel" in skipped(_model(), ShiftBus(lowest))


def test_by_name_it_has_no_smallest_values_and_says_so():
    assert "no smallest value of each channel of x0" in skipped(_model(), "shift-bus")


def test_a_bus_that_begins_at_zero_is_skipped():
    assert "begins at zero" in skipped(_model(), ShiftBus({"x0": np.zeros(3), "x1": np.zeros(2)}))

"""What the readers of a dense block can tell apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.bus import find_buses
from densenet_deploy.graph.needed_ranges import Needed, narrowed, needed_range
from tests.graph.onnx_text import model_of, outputs_of

BUS = "x0 = Conv(x, w0)  x1 = Conv(x, w1)  s = Concat<axis=1>(x0, x1)  "
# Thresholds -t/s with mean 0 and variance 1: s = gamma, t = beta.
NORM_A = "a = BatchNormalization<epsilon=0.0>(s, ga, ba, zero, one)  ra = Relu(a)  "
NORM_B = "b = BatchNormalization<epsilon=0.0>(s, gb, bb, zero, one)  rb = Relu(b)  "
NUMBERS = (
    "float[1,3,1,1] w0 = {1, 0, 0}, float[2,3,1,1] w1 = {0, 1, 0, 0, 0, 1}, float[3] zero = {0, 0, 0}, "
    "float[3] one = {1, 1, 1}, float[3] ga = {1, 2, -1}, float[3] ba = {1, 1, 2}, float[3] gb = {2, -1, -2}, "
    "float[3] bb = {4, 1, 1}, float[2,3,1,1] v = {1, 1, 1, 1, 1, 1}"
)
OUTPUTS = "float[N,3,5,5] ra, float[N,3,5,5] rb"


def _needed(body: str, outputs: str = OUTPUTS) -> Needed:
    (bus,) = find_buses(model_of(body, NUMBERS, outputs=outputs).graph).found
    return needed_range(bus)


def test_values_that_every_reader_clips_are_not_needed():
    low, high = _needed(BUS + NORM_A + NORM_B)
    # channel 0: both clip from below, at -1 and at -2; 1: one from below, one from above; 2: both from above, 2 and 0.5
    np.testing.assert_allclose(low, [-2, -np.inf, -np.inf])
    np.testing.assert_allclose(high, [np.inf, np.inf, 2])


@pytest.mark.parametrize(
    ("reader", "output"),
    [
        ("z = Conv(s, v)", "float[N,2,5,5] z"),
        ("z = BatchNormalization(s, ga, ba, zero, one)", "float[N,3,5,5] z"),
        ("n = BatchNormalization(s, ga, ba, zero, one)  z = Sigmoid(n)", "float[N,3,5,5] z"),
        ("n = BatchNormalization(s, ga, ba, zero, one)  z = Relu(n)  m = Neg(n)", "float[N,3,5,5] z, float[N,3,5,5] m"),
    ],
    ids=["a conv", "a norm without a Relu", "another activation", "a norm that others read too"],
)
def test_a_reader_that_clips_nothing_needs_everything(reader, output):
    low, high = _needed(BUS + NORM_A + reader, f"float[N,3,5,5] ra, {output}")
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


def test_what_leaves_the_graph_is_needed_whole():
    low, high = _needed(BUS + NORM_A + NORM_B, f"{OUTPUTS}, float[N,2,5,5] x1")
    np.testing.assert_allclose(low, [-2, -np.inf, -np.inf])
    np.testing.assert_allclose(high, [np.inf, np.inf, np.inf])
    low, high = _needed(BUS + NORM_A, f"{OUTPUTS.split(', ')[0]}, float[N,3,5,5] s")
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


def test_a_norm_of_scale_zero_needs_nothing():
    numbers = NUMBERS.replace("ga = {1, 2, -1}", "ga = {0, 0, 0}")
    (bus,) = find_buses(model_of(BUS + NORM_A, numbers, outputs="float[N,3,5,5] ra").graph).found
    low, high = needed_range(bus)
    assert np.isposinf(low).all()
    assert np.isneginf(high).all()


def test_cutting_off_what_is_not_needed_changes_no_result():
    model = model_of(BUS + NORM_A + NORM_B, NUMBERS, outputs=OUTPUTS)
    (bus,) = find_buses(model.graph).found
    low, high = needed_range(bus)
    before = outputs_of(model)
    concat = model.graph[2]
    bounds = [
        ir.Value(name=name, const_value=ir.tensor(np.clip(bound, -1e9, 1e9).astype(np.float32).reshape(3, 1, 1)))
        for name, bound in (("low", low), ("high", high))
    ]
    for bound in bounds:
        model.graph.register_initializer(bound)
    raised = ir.Node("", "Max", [concat.outputs[0], bounds[0]], num_outputs=1)
    cut = ir.Node("", "Min", [raised.outputs[0], bounds[1]], num_outputs=1)
    raised.outputs[0].name, cut.outputs[0].name = "raised", "cut"
    for node in (node for node in model.graph if node.op_type == "BatchNormalization"):
        node.replace_input_with(0, cut.outputs[0])
    model.graph.insert_after(concat, [raised, cut])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_ranges_are_narrowed_and_never_turned_round():
    low, high = np.array([-5, -5, 0, 1], np.float32), np.array([5, 5, 1, 3], np.float32)
    needed = Needed(np.array([-2, -np.inf, 9, np.inf]), np.array([np.inf, 2, np.inf, -np.inf]))
    narrow_low, narrow_high = narrowed(low, high, needed)
    np.testing.assert_array_equal(narrow_low, [-2, -5, 1, 3])
    np.testing.assert_array_equal(narrow_high, [5, 2, 1, 3])

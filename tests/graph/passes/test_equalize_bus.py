"""One range for every channel of a dense block."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
from densenet_deploy.graph.tensor_changes import read_tensor_changes
from tests.graph.onnx_text import model_of, operators, weights
from tests.graph.passes.checks import rewritten, skipped

# Two segments, x0 (3 channels) and x1 (2), read as a whole by each kind of reader.
MAKERS = "x0 = Conv(x, w0, b0)  r = Relu(x0)  x1 = Conv(x, w1)  s = Concat<axis=1>(x0, x1)  "
STEM = (
    "c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  x0 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)  "
)
SHAPES = {
    "w0": (3, 3, 1, 1), "b0": (3,), "w1": (2, 3, 1, 1), "gamma": (5,), "beta": (5,), "mean": (5,), "var": (5,),
    "mul": (5, 1, 1), "v": (4, 5, 1, 1), "u": (4, 5, 3, 3),
}  # fmt: skip
BODY = MAKERS.replace("  r = Relu(x0)", "") + "y = BatchNormalization(s, gamma, beta, mean, var)"
OUTPUT = "float[N,5,5,5] y"
RANGES = {"x0": np.array([2, 0.1, 7], np.float32), "x1": np.array([0.3, 30], np.float32)}


def _model(body=BODY, outputs=OUTPUT, **shapes):
    return model_of(body, weights(**{**SHAPES, **shapes}), outputs=outputs)


def _read_by(reader, outputs=OUTPUT, **shapes):
    return _model(BODY[: BODY.index("y =")] + reader, outputs, **shapes)


@pytest.mark.parametrize(
    ("reader", "channels"),
    [
        ("y = BatchNormalization(s, gamma, beta, mean, var)", 5),
        ("m = Mul(s, mul)  y = Add(m, mul)", 5),
        ("y = Mul(mul, s)", 5),
        ("y = Mul(s, one)", 5),
        ("y = Conv(s, v)", 4),
        ("y = Conv<pads=[1,1,1,1], strides=[2,2]>(s, u)", 4),
        ("y = Conv<group=5>(s, g)", 10),
    ],
    ids=["norm", "mul and add", "mul from the left", "mul by one number", "1x1 conv", "3x3 conv", "depthwise conv"],
)
def test_every_reader_undoes_the_division(reader, channels):
    size = 3 if "strides" in reader else 5
    model = _read_by(reader, f"float[N,{channels},{size},{size}] y", one=(1,), g=(10, 1, 1, 1))
    kinds = operators(model)
    report = rewritten(model, EqualizeBus(RANGES))
    assert (report.name, report.changed, operators(model)) == ("equalize-bus", ("s",), kinds)


def test_the_readers_of_a_part_undo_their_part():
    body = MAKERS + "n = Mul(r, r)  e = Mul(x1, half)  y = BatchNormalization(s, gamma, beta, mean, var)"
    body = body.replace("r = Relu(x0)  ", "").replace("n = Mul(r, r)", "n = Conv(x0, w0)")
    model = _model(body, f"{OUTPUT}, float[N,3,5,5] n, float[N,2,5,5] e", half=(1, 2, 1, 1))
    rewritten(model, EqualizeBus(RANGES))


def test_the_division_passes_the_stem():
    body = STEM + "x1 = Conv(x0, w1)  s = Concat<axis=1>(x0, x1)  y = BatchNormalization(s, gamma, beta, mean, var)"
    model = _model(body, "float[N,5,3,3] y", w=(3, 3, 3, 3))
    rewritten(model, EqualizeBus(RANGES))
    assert set(read_tensor_changes(model.metadata_props)) == {
        f"{name}:scaled" for name in ("c", "r", "x0", "x1", "s")
    }  # fmt: skip


@pytest.mark.parametrize(
    "maker",
    [
        "c = Conv(x, w0)  x0 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
        "a = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)  x0 = Conv(a, w0)",
        "c = Conv<strides=[3,3]>(x, w0)  x0 = BatchNormalization(c, b0, b0, b0, b0)",
        "c = Conv<strides=[3,3]>(x, w0)  m = Mul(c, t)  x0 = Add(t, m)",
    ],
    ids=["pool after conv", "pool before conv", "norm", "mul and add"],
)
def test_the_first_segment_may_come_from_a_transition(maker):
    body = maker + "  x1 = Conv(x0, w1)  s = Concat<axis=1>(x0, x1)  y = BatchNormalization(s, gamma, beta, mean, var)"
    model = _model(body, "float[N,5,2,2] y", t=(3, 1, 1))
    model.graph[-4].outputs[0].shape = ir.Shape(["N", 3, 2, 2])
    rewritten(model, EqualizeBus(RANGES))


def test_factors_are_the_ranges_and_every_tensor_says_its_own():
    model = _model()
    rewritten(model, EqualizeBus(RANGES))
    changes = read_tensor_changes(model.metadata_props)
    factors = {change.of: change.factor for change in changes.values()}
    assert factors == {"x0": (2, 0.1, 7), "x1": (0.3, 30), "s": (2, 0.1, 7, 0.3, 30)}


def test_a_dead_channel_is_held_at_a_thousandth_of_the_largest():
    model = _model()
    rewritten(model, EqualizeBus({"x0": np.array([2, 0, 1e-30]), "x1": np.array([1, 30])}))
    change = read_tensor_changes(model.metadata_props)["s:scaled"]
    np.testing.assert_allclose(change.factor, [2, 0.03, 0.03, 1, 30], rtol=1e-6)  # float32 of decimal numbers


@pytest.mark.parametrize("ranges", [([2, 0, 1], [0, 4]), ([0, 0, 0], [1, 4]), ([2, 3, 1], [0, 0])])
def test_a_bus_with_dead_channels_or_a_dead_segment_is_rewritten(ranges):
    model = _model()
    rewritten(model, EqualizeBus({"x0": np.float32(ranges[0]), "x1": np.float32(ranges[1])}))
    whole = np.float32([*ranges[0], *ranges[1]])
    expected = np.where(whole == 0, np.float32(1e-3 * whole.max()), whole)
    factor = read_tensor_changes(model.metadata_props)["s:scaled"].factor
    np.testing.assert_array_equal(np.float32(factor), expected)


def test_numbers_that_others_share_stay_for_them():
    model = _model(BODY + "  z = Conv(x, w0)", f"{OUTPUT}, float[N,3,5,5] z")
    rewritten(model, EqualizeBus(RANGES))
    assert {"w0", "w0:scaled"} <= set(model.graph.initializers)


def test_weights_through_an_identity_are_weights():
    rewritten(_model("k = Identity(w1)  " + BODY.replace("(x, w1)", "(x, k)")), EqualizeBus(RANGES))


NORM = BODY[BODY.index("y =") :]  # the norm that reads the bus
REASONS = {
    "a segment leaves the graph": (BODY, f"{OUTPUT}, float[N,2,5,5] x1", "s: x1 leaves the graph"),
    "the bus leaves the graph": (BODY, f"{OUTPUT}, float[N,5,5,5] s", "s: s leaves the graph"),
    "a reader is not linear": (MAKERS + NORM, f"{OUTPUT}, float[N,3,5,5] r", "Relu reads it and is not known"),
    "a reader is of another domain": (BODY + "  z = other.Conv(s, v)", f"{OUTPUT}, float[N,4,5,5] z", "not known"),
    "a reader multiplies it by itself": (BODY + "  z = Mul(s, s)", f"{OUTPUT}, float[N,5,5,5] z", "does not multiply"),
    "a reader has one factor a row": (BODY + "  z = Mul(s, row)", f"{OUTPUT}, float[N,5,5,5] z", "does not multiply"),
    "a reader has factors for images": (BODY + "  z = Mul(s, n)", f"{OUTPUT}, float[2,5,5,5] z", "does not multiply"),
    "a reader takes it for weights": (BODY + "  z = Conv(d, s)", f"{OUTPUT}, float[1,N,1,1] z", "is not known"),
    "a reader has weights from outside": (BODY + "  z = Conv(s, f)", f"{OUTPUT}, float[N,4,5,5] z", "float32"),
    "a reader in training": (
        MAKERS + "y, e, h = BatchNormalization<training_mode=1>(s, gamma, beta, mean, var)", OUTPUT, "in training mode",
    ),
    "a segment is the input": (BODY.replace("(x0, x1)", "(x, x1)"), OUTPUT, "x is an input of the graph"),
    "a segment is not made by a convolution": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  q = Mul(k, k)  x1 = Relu(q)"), OUTPUT, "made by Mul (Mul)",
    ),
    "a segment is a sum of tensors": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = Add(k, k)"), OUTPUT, "made by Add (Add)",
    ),
    "a segment is shifted, not scaled": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = Add(k, t)"), OUTPUT, "made by Add (Add)",
    ),
    "a scaled segment is read before its shift": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  l = Mul(k, t)  x1 = Add(l, t)") + "  z = Neg(l)",
        f"{OUTPUT}, float[N,2,5,5] z", "made by Add (Add)",
    ),
    "a segment is read before its activation": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = Relu(k)") + "  z = Neg(k)",
        f"{OUTPUT}, float[N,2,5,5] z", "k has other readers",
    ),
    "a segment's norm has numbers from outside": (
        BODY.replace("x1 = Conv(x, w1)", "k = Conv(x, w1)  x1 = BatchNormalization(k, o, o, o, o)"), OUTPUT, "float32",
    ),
    "a segment's weights come from outside": (BODY.replace("(x, w1)", "(x, i)"), OUTPUT, "float32 constants"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "outputs", "why"), REASONS.values(), ids=REASONS)
def test_a_bus_that_cannot_be_scaled_whole_is_skipped(body, outputs, why):
    inputs = "float[N,3,5,5] x, float[1,5,5,5] d, float[4,5,1,1] f, float[2] o, float[2,3,1,1] i"
    model = model_of(body, weights(**SHAPES, row=(5, 1), n=(2, 1, 1, 1), t=(2, 1, 1)), inputs, outputs)
    for value in (value for node in model.graph for value in node.outputs if value.name in ("x1", "k", "q", "l")):
        value.shape = ir.Shape(["N", 2, 5, 5])
    assert why in skipped(model, EqualizeBus({**RANGES, "x": np.ones(3)}))


def test_a_reader_in_a_subgraph_is_skipped():
    branches = ", ".join(
        f"{name}_branch = {name} () => (float[N,5,5,5] {name}_z) {{ {name}_z = Mul(s, mul) }}"
        for name in ("then", "else")
    )
    body = f"{BODY}  z = If<{branches}>(c)"
    model = model_of(body, weights(**SHAPES), "float[N,3,5,5] x, bool c", f"{OUTPUT}, float[N,5,5,5] z")
    assert "is in a subgraph" in skipped(model, EqualizeBus(RANGES))


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ({}, "no range of x0 is given"),
        ({"x0": RANGES["x0"]}, "no range of x1 is given"),
        ({**RANGES, "x1": np.ones(3)}, r"the range of x1 has the shape (3,), not (2,)"),
        ({**RANGES, "x1": np.array([1, np.nan])}, "the range of x1 is negative or not finite"),
        ({**RANGES, "x1": np.array([1, np.inf])}, "the range of x1 is negative or not finite"),
        ({**RANGES, "x1": np.array([1, -1])}, "the range of x1 is negative or not finite"),
        ({"x0": np.zeros(3), "x1": np.zeros(2)}, "it is zero everywhere"),
    ],
)
def test_ranges_that_say_nothing_change_nothing(ranges, why):
    assert skipped(_model(), EqualizeBus(ranges)) == f"s: {why}"


def test_by_name_it_has_no_ranges_and_says_so():
    assert skipped(_model(), "equalize-bus") == "s: no range of x0 is given"


def test_concats_that_are_not_a_bus_are_named():
    assert "it holds one tensor" in skipped(
        _model(BODY.replace("(x0, x1)", "(x0)"), "float[N,3,5,5] y", gamma=(3,), beta=(3,), mean=(3,), var=(3,)),
        EqualizeBus(RANGES),
    )


FORMS = {
    "as exported": (),
    "pools first": ("remove-single-concat", "pool-before-conv"),
    "affine, in steps": ("norm-to-affine", "concat-incremental"),
}

"""Norms that change nothing, where a bus meets what cannot be rescaled or shifted."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.bus import find_buses
from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.passes.equalize_bus import EqualizeBus
from densenet_deploy.graph.passes.separate_bus import SeparateBus
from densenet_deploy.graph.passes.shift_bus import ShiftBus
from densenet_deploy.graph.tensor_changes import TensorChange, read_tensor_changes
from tests.graph.onnx_text import model_of, numbers_of, outputs_of, value_named, weights
from tests.graph.passes.checks import rewritten, skipped

# Two segments, x0 (3 channels) and x1 (2), read as a whole by a norm, unless a test says otherwise.
SHAPES = {
    "w0": (3, 3, 1, 1), "w1": (2, 3, 1, 1), "gamma": (5,), "beta": (5,), "mean": (5,), "var": (5,), "v": (4, 5, 3, 3),
    "g2": (2,), "b2": (2,), "m2": (2,), "v2": (2,), "w2": (4, 2, 1, 1), "square": (2, 2, 1, 1),
}  # fmt: skip
SEGMENTS = "x0 = Conv(x, w0)  x1 = Conv(x, w1)  "
GATED = "x0 = Conv(x, w0)  k = Conv(x, w1)  h = Sigmoid(k)  x1 = Mul(k, h)  "
JOINED = "s = Concat<axis=1>(x0, x1)  "
NORM = "y = BatchNormalization(s, gamma, beta, mean, var)"
OUTPUT = "float[N,5,5,5] y"
CHANNELS = {"x0": 3, "x1": 2, "s": 5, "s2": 5}


def _model(body: str, outputs: str = OUTPUT) -> ir.Model:
    model = model_of(body, weights(**SHAPES), outputs=outputs)
    for value in (value for node in model.graph for value in node.outputs if value.name in CHANNELS):
        value.shape, value.type = ir.Shape(["N", CHANNELS[value.name], 5, 5]), ir.TensorType(ir.DataType.FLOAT)
    return model


def _reads(model: ir.Model) -> dict[str, list[str]]:
    """What each node reads that a node makes or the graph takes, by what it makes."""
    constants = set(model.graph.initializers)
    return {
        str(node.outputs[0].name): [str(value.name) for value in node.inputs if value and value.name not in constants]
        for node in model.graph
    }


def test_a_bus_of_convolutions_and_norms_stays_as_it_is():
    assert skipped(_model(SEGMENTS + JOINED + NORM), SeparateBus()) == ""
    assert skipped(_model(SEGMENTS + JOINED + NORM), "separate-bus") == ""
    lowest = {"x0": np.full(3, -1, np.float32), "x1": np.full(2, -1, np.float32)}
    assert skipped(_model(SEGMENTS + JOINED + NORM), SeparateBus(lowest)) == "", "their constants take the shift"


def test_a_segment_that_no_scale_reaches_gets_a_norm_that_the_concat_reads():
    model = _model(GATED + JOINED + NORM)
    report = rewritten(model, SeparateBus())
    assert report.changed == ("x1",)
    reads = _reads(model)
    assert (reads["x1:bus"], reads["s"]) == (["x1"], ["x0", "x1:bus"])
    assert read_tensor_changes(model.metadata_props) == {"x1:bus": TensorChange("x1")}


def test_the_norm_is_the_identity_and_knows_type_and_shape():
    model = _model(GATED + JOINED + NORM)
    rewritten(model, SeparateBus())
    made = value_named(model, "x1:bus")
    norm = made.producer()
    assert (norm.op_type, norm.name, norm.attributes["epsilon"].as_float()) == ("BatchNormalization", "x1:bus", 0.0)
    assert [numbers_of(value).tolist() for value in norm.inputs[1:]] == [[1, 1], [0, 0], [0, 0], [1, 1]]
    assert [value.name for value in norm.inputs[1:]] == [f"x1:bus.{r}" for r in ("scale", "shift", "mean", "variance")]
    assert (made.dtype, list(made.shape)) == (ir.DataType.FLOAT, ["N", 2, 5, 5])


def test_what_stands_beside_the_bus_reads_the_segment_itself():
    model = _model(
        GATED + JOINED + NORM + "  a = Abs(x1)  c = Conv(x1, w2)", f"{OUTPUT}, float[N,2,5,5] a, float[N,4,5,5] c"
    )
    rewritten(model, SeparateBus())
    assert (_reads(model)["a"], _reads(model)["c"]) == (["x1"], ["x1:bus"]), "a Conv can undo a scale, an Abs cannot"


@pytest.mark.parametrize("reader", ["a = Abs(x1)", "a = Mul(x1, x1)"])
def test_a_segment_that_others_read_is_left_to_them(reader):
    model = _model(f"{SEGMENTS}{JOINED}{NORM}  {reader}", f"{OUTPUT}, float[N,2,5,5] a")
    assert rewritten(model, SeparateBus()).changed == ("x1",)
    assert set(_reads(model)["a"]) == {"x1"}
    assert _reads(model)["s"] == ["x0", "x1:bus"]


def test_a_segment_that_leaves_the_graph_keeps_its_name():
    model = _model(SEGMENTS + JOINED + NORM, f"{OUTPUT}, float[N,2,5,5] x1")
    assert rewritten(model, SeparateBus()).changed == ("x1",)
    assert (_reads(model)["s"], _reads(model)["x1:bus"]) == (["x0", "x1:bus"], ["x1"])


def test_a_reader_that_cannot_undo_a_scale_reads_a_norm():
    model = _model(
        SEGMENTS + JOINED + NORM + "  a = Abs(s)  b = Mul(s, s)", f"{OUTPUT}, float[N,5,5,5] a, float[N,5,5,5] b"
    )
    assert rewritten(model, SeparateBus()).changed == ("s",)
    reads = _reads(model)
    assert (reads["a"], reads["b"], reads["y"], reads["s:read"]) == (["s:read"], ["s:read"] * 2, ["s"], ["s"])
    assert read_tensor_changes(model.metadata_props) == {}, "it holds what it held, and so does the norm"


def test_a_block_that_leaves_the_graph_leaves_it_through_a_norm():
    model = _model(SEGMENTS + JOINED + NORM, f"{OUTPUT}, float[N,5,5,5] s")
    rewritten(model, SeparateBus())
    reads = _reads(model)
    assert (reads["s"], reads["y"], reads["s:bus"]) == (["s:bus"], ["s:bus"], ["x0", "x1"])
    assert [value.name for value in model.graph.outputs] == ["y", "s"]
    assert read_tensor_changes(model.metadata_props) == {"s:bus": TensorChange("s")}


@pytest.mark.parametrize("then", ["p = Relu(x1)", "p = Conv(x1, square)"])
def test_a_reader_in_a_branch_reads_the_segment_itself(then):
    """Even a Conv there: its weights are outside."""
    branches = (
        f"a = If(c) <then_branch = t () => (float[N,2,5,5] p) {{ {then} }}, "
        "else_branch = e () => (float[N,2,5,5] q) { q = Abs(x1) }>"
    )
    body = "z = ReduceMax<keepdims=0>(x)  c = Cast<to=9>(z)  "
    model = _model(f"{SEGMENTS}{JOINED}{NORM}  {body}{branches}", f"{OUTPUT}, float[N,2,5,5] a")
    before = outputs_of(model)
    (report,) = apply_passes(model, [SeparateBus()])
    assert report.changed == ("x1",)
    assert {use.node.op_type for use in value_named(model, "x1:bus").uses()} == {"Concat"}
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5)


def test_the_image_itself_may_be_a_segment():
    model = _model("x1 = Conv(x, w1)  s = Concat<axis=1>(x, x1)  " + NORM)
    assert rewritten(model, SeparateBus()).changed == ("x",)
    assert (_reads(model)["x:bus"], _reads(model)["s"], _reads(model)["x1"]) == (["x"], ["x:bus", "x1"], ["x:bus"])


POOLED = "x0 = Conv(x, w0)  k = Conv(x, w1)  x1 = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(k)  "


@pytest.mark.parametrize(("lowest", "is_changed"), [(0.0, False), (0.5, False), (-1e-6, True), (None, False)])
def test_a_segment_that_can_be_scaled_but_not_shifted_is_separated_where_it_must_be_shifted(lowest, is_changed):
    """Averages of padded windows pass a scale on; the pad would have to be shifted too."""
    given = {} if lowest is None else {"x1": np.array([1.0, lowest], np.float32)}
    model = _model(POOLED + JOINED + NORM)
    (report,) = apply_passes(model, [SeparateBus(given)])
    assert report.changed == (("x1",) if is_changed else ())


def test_afterwards_every_bus_can_be_shifted_and_equalized():
    body = GATED + JOINED + NORM + "  a = Abs(s)"
    model = _model(body, f"{OUTPUT}, float[N,5,5,5] a, float[N,5,5,5] s")
    rewritten(model, SeparateBus({}))
    lowest = {name: np.full(n, -2, np.float32) for name, n in (("x0", 3), ("x1:bus", 2))}
    sizes = {f"{name}:shifted": np.arange(1, len(low) + 1, dtype=np.float32) for name, low in lowest.items()}
    assert rewritten(model, ShiftBus(lowest)).changed == ("s:bus",)
    assert rewritten(model, EqualizeBus(sizes)).changed == ("s:bus:shifted",)


def test_two_buses_are_separated_each():
    body = GATED + JOINED + "n = Neg(s)  s2 = Concat<axis=1>(n, x0)  y = Abs(s2)"
    model = _model(body, "float[N,8,5,5] y")
    value_named(model, "n").shape = ir.Shape(["N", 5, 5, 5])
    value_named(model, "s2").shape = ir.Shape(["N", 8, 5, 5])
    assert len(find_buses(model.graph).found) == 1, "x0 is in both"
    assert set(rewritten(model, SeparateBus()).changed) == {"x1", "n", "s", "s2"}

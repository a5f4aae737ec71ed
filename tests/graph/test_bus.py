"""Finding the buses of a graph, however their Concats are written, and what their readers tell apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.bus import Bus, Needed, Segment, channel_concats, find_buses, narrowed, needed_range, through
from tests.graph.onnx_text import constants, maker_of, model_of, outputs_of, weights

LAYERS = "x0 = Relu(x)  x1 = Conv(x0, w)  x2 = Conv(x1, v)  "
WEIGHTS = weights(w=(2, 3, 1, 1), v=(4, 2, 1, 1))
FLAT = LAYERS + "p = Concat<axis=1>(x0, x1)  q = Concat<axis=1>(x0, x1, x2)  y = Neg(q)  z = Abs(p)"
ENDS = "float[N,9,5,5] y, float[N,5,5,5] z"


def _buses(body: str, outputs: str = ENDS, inputs: str = "float[N,3,5,5] x"):
    return find_buses(model_of(body, WEIGHTS, inputs, outputs).graph)


def _layout(bus: Bus) -> dict[str, tuple[int, int]]:
    assert all(tensor.places == (*range(tensor.places[0], tensor.places[-1] + 1),) for tensor in bus.tensors)
    return {tensor.name: (tensor.places[0], tensor.channels) for tensor in bus.tensors}


def _readers(bus: Bus) -> set[tuple[str, int, str]]:
    return {(reader.node.op_type, reader.index, reader.segment.name) for reader in bus.readers}


@pytest.mark.parametrize("q", ["x0, x1, x2", "p, x2"], ids=["flat", "in steps"])
@pytest.mark.parametrize("axis", [1, -3])
def test_a_bus_is_found(q, axis):
    body = FLAT.replace("x0, x1, x2", q).replace("axis=1", f"axis={axis}")
    ((bus,), refused) = _buses(body)
    assert refused == ()
    assert _layout(bus) == {"x0": (0, 3), "x1": (3, 2), "x2": (5, 4), "p": (0, 5), "q": (0, 9)}
    assert (bus.name, bus.channels, len(bus.segments), len(bus.concats)) == ("q", 9, 3, 2)
    assert _readers(bus) == {("Conv", 0, "x0"), ("Conv", 0, "x1"), ("Abs", 0, "p"), ("Neg", 0, "q")}
    assert bus.outputs == ()
    assert [tensor.name for tensor in bus.tensors] == ["x0", "x1", "x2", "p", "q"]
    assert [segment.of(np.arange(9)).tolist() for segment in bus.segments] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


def test_new_channels_may_stand_first():
    body = FLAT.replace("(x0, x1)", "(x1, x0)").replace("(x0, x1, x2)", "(x2, p)")
    ((bus,), _) = _buses(body)
    assert _layout(bus) == {"x2": (0, 4), "x1": (4, 2), "x0": (6, 3), "p": (4, 5), "q": (0, 9)}


def test_a_concat_of_the_first_segment_alone_belongs_to_the_bus():
    body = FLAT.replace("x1 = Conv(x0, w)", "o = Concat<axis=1>(x0)  x1 = Conv(o, w)")
    ((bus,), _) = _buses(body)
    assert _layout(bus)["o"] == (0, 3)
    assert ("Conv", 0, "o") in _readers(bus)


def test_a_node_that_reads_twice_is_two_readers():
    ((bus,), _) = _buses(FLAT.replace("Neg(q)", "Mul(q, q)"))
    assert {("Mul", 0, "q"), ("Mul", 1, "q")} <= _readers(bus)


def test_tensors_that_leave_the_graph_are_named():
    ((bus,), _) = _buses(FLAT, f"{ENDS}, float[N,5,5,5] p, float[N,2,5,5] x1")
    assert {tensor.name for tensor in bus.outputs} == {"p", "x1"}


def test_two_blocks_are_two_buses_in_order():
    body = (
        "a = Relu(x)  p = Concat<axis=1>(x, a)  n = Neg(p)  b = Relu(n)  q = Concat<axis=1>(n, b)"
        "  t = Abs(q)  c = Relu(t)  r = Concat<axis=1>(t, c)  y = Abs(r)"
    )
    model = model_of(body, "", outputs="float[N,24,5,5] y")
    for node in model.graph:
        if node.op_type in ("Neg", "Abs"):
            node.outputs[0].shape = ir.Shape(["N", {"n": 6, "t": 12}.get(node.outputs[0].name, 24), 5, 5])
    found, refused = find_buses(model.graph)
    assert [bus.name for bus in found] == ["p", "q", "r"]
    assert refused == ()


def test_concats_that_meet_late_are_one_group():
    body = LAYERS + "p = Concat<axis=1>(x0, x1)  s = Concat<axis=1>(x2, x)  y = Concat<axis=1>(p, s)  z = Abs(p)"
    ((bus,), _) = _buses(body, "float[N,12,5,5] y, float[N,5,5,5] z")
    assert [concat.name for concat in bus.concats] == ["p", "s", "y"]
    assert _layout(bus) == {
        "x0": (0, 3),
        "x1": (3, 2),
        "x2": (5, 4),
        "x": (9, 3),
        "p": (0, 5),
        "s": (5, 7),
        "y": (0, 12),
    }


@pytest.mark.parametrize(
    ("body", "outputs", "why"),
    [
        (LAYERS + "p = Concat<axis=1>(x2)  y = Neg(p)", "float[N,4,5,5] y", "p: it holds one tensor"),
        (LAYERS + "s = Sigmoid(x2)  p = Concat<axis=1>(x2, s)  y = Neg(p)", "float[N,8,5,5] y", "number of channels"),
        (LAYERS + "f = Flatten(x2)  p = Concat<axis=1>(f, f)  y = Neg(p)", "float[N,k] y", "rows of numbers"),
        (LAYERS + "f = Flatten(x2)  s = Exp(f)  p = Concat<axis=1>(f, s)  y = Neg(p)", "float[N,k] y", "rows of num"),
    ],
)  # fmt: skip
def test_concats_that_are_not_a_bus_are_refused_with_the_reason(body, outputs, why):
    found, refused = _buses(body, outputs)
    assert found == ()
    (reason,) = refused
    assert why in reason


def _places(body: str, outputs: str) -> tuple[str, dict[str, list[int]]]:
    ((bus,), refused) = _buses(body, outputs)
    assert refused == ()
    return bus.name, {tensor.name: list(tensor.places) for tensor in bus.tensors}


@pytest.mark.parametrize(
    ("body", "outputs", "name", "places"),
    [
        (FLAT.replace("(x0, x1, x2)", "(x1, x0, x2)"), ENDS, "q", {"p": [2, 3, 4, 0, 1], "q": [*range(9)]}),
        (FLAT.replace("(x0, x1)", "(x2, x0)"), "float[N,9,5,5] y, float[N,7,5,5] z", "q",
         {"p": [5, 6, 7, 8, 0, 1, 2], "q": [*range(9)]}),
        (FLAT.replace("(x0, x1, x2)", "(x1, x2)"), "float[N,6,5,5] y, float[N,5,5,5] z", "q",
         {"p": [0, 1, 2, 3, 4], "q": [3, 4, 5, 6, 7, 8]}),
        (LAYERS + "p = Concat<axis=1>(x2, x2)  y = Neg(p)", "float[N,8,5,5] y", "p", {"p": [0, 1, 2, 3] * 2}),
    ],
    ids=["another order", "turned round", "none holds all", "a tensor twice"],
)  # fmt: skip
def test_concats_may_hold_their_tensors_in_any_order(body, outputs, name, places):
    """The bus holds what the first of the Concats of the most tensors holds, then the rest."""
    found, layout = _places(body, outputs)
    assert (found, {key: layout[key] for key in places}) == (name, places)


NUMBERS_OF_THREE = ", ".join(f"float[3] {name} = {{1, 2, 3}}" for name in "gbmv")
ALONE = "[c] a = Conv(x, w)  [n] y = BatchNormalization(a, g, b, m, v)"


def _alone(body: str = ALONE, outputs: str = "float[N,3,5,5] y"):
    text = f"{weights(w=(3, 3, 1, 1))}, {NUMBERS_OF_THREE}"
    return find_buses(model_of(body, text, outputs=outputs).graph)


def test_a_feature_map_that_a_norm_reads_is_a_bus_of_its_own():
    ((bus,), refused) = _alone(ALONE + "  z = Neg(a)", "float[N,3,5,5] y, float[N,3,5,5] z")
    assert refused == ()
    assert (bus.name, _layout(bus), bus.concats) == ("a", {"a": (0, 3)}, ())
    assert _readers(bus) == {("BatchNormalization", 0, "a"), ("Neg", 0, "a")}


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = BatchNormalization(x, g, b, m, v)", "float[N,3,5,5] y"),
        (ALONE.replace("Normalization", "Normalization<training_mode=1>"), "float[N,3,5,5] y"),
        ("a = Flatten(x)  h = MatMul(a, k)  y = BatchNormalization(h, g, b, m, v)", "float[N,3] y"),
        ("a = Conv(x, w)  y = Relu(a)", "float[N,3,5,5] y"),
    ],
    ids=["an input", "in training mode", "rows of numbers", "no norm"],
)
def test_other_tensors_are_no_buses_of_their_own(body, outputs):
    text = f"{weights(w=(3, 3, 1, 1), k=(75, 3))}, {NUMBERS_OF_THREE}"
    model = ir.to_proto(model_of(body, text, outputs=outputs))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert find_buses(inferred.graph) == ((), ())


def test_what_a_concat_holds_is_no_bus_of_its_own_even_if_the_concats_are_none():
    body = ALONE + "  s = Sigmoid(a)  z = Concat<axis=1>(a, s)"
    found, refused = _alone(body, "float[N,3,5,5] y, float[N,6,5,5] z")
    assert (found, refused) == ((), ("z: the number of channels of s is unknown",))


def test_buses_of_one_tensor_and_of_more_come_in_the_order_of_the_graph():
    body = (
        "a = Conv(x, w)  n = BatchNormalization(a, g, b, m, v)  c = Conv(n, w)  d = Concat<axis=1>(n, c)"
        "  e = Conv<group=3>(n, k)  y = BatchNormalization(e, g, b, m, v)  z = Neg(d)"
    )
    text = f"{weights(w=(3, 3, 1, 1), k=(3, 1, 1, 1))}, {NUMBERS_OF_THREE}"
    found, _ = find_buses(model_of(body, text, outputs="float[N,3,5,5] y, float[N,6,5,5] z").graph)
    assert [bus.name for bus in found] == ["a", "d", "e"]


def test_a_second_concat_of_the_same_run_belongs_to_the_bus():
    """It shares its inputs with the first alone, and that feeds the next."""
    body = FLAT.replace("q = Concat<axis=1>(x0, x1, x2)", "q = Concat<axis=1>(p, x2)  r = Concat<axis=1>(x0, x1)")
    ((bus,), refused) = _buses(body + "  o = Exp(r)", f"{ENDS}, float[N,5,5,5] o")
    assert refused == ()
    assert [(concat.name, concat.places[0], concat.channels) for concat in bus.concats] == [
        ("p", 0, 5),
        ("q", 0, 9),
        ("r", 0, 5),
    ]


def test_signals_make_a_bus():
    body = "a = Relu(x)  y = Concat<axis=1>(x, a)"
    ((bus,), _) = find_buses(model_of(body, "", "float[N,3,5] x", "float[N,6,5] y").graph)
    assert _layout(bus) == {"x": (0, 3), "a": (3, 3), "y": (0, 6)}


def test_the_bus_is_called_by_the_first_tensor_that_holds_all_of_it():
    body = FLAT.replace("y = Neg(q)", "q2 = Concat<axis=1>(p, x2)  y = Add(q, q2)")
    ((bus,), _) = _buses(body)
    assert bus.name == "q"


def test_channels_are_the_axis_of_old_files_that_say_none():
    header = '<ir_version: 3, opset_import: ["" : 3]>'
    model = model_of("y = Concat(x, x)", "", outputs="float[N,6,5,5] y", header=header)
    assert len(channel_concats(model.graph)) == 1


@pytest.mark.parametrize(("size", "axis"), [("3", 0), ("3", -1), ("N,3,5,5", 0), ("N,3,5,5", -1), ("N,3,5,5", 3)])
def test_joining_along_another_axis_joins_no_channels(size, axis):
    output = "A" if size == "3" else "A,B,C,D"
    model = model_of(f"y = Concat<axis={axis}>(x, x)", "", f"float[{size}] x", f"float[{output}] y")
    assert channel_concats(model.graph) == []


def test_a_negative_axis_of_unknown_rank_joins_no_channels():
    model = model_of("s = Sigmoid(x)  t = Concat<axis=-3>(s, s)  y = Relu(t)", "", outputs="float[N,6,5,5] y")
    assert channel_concats(model.graph) == []


@pytest.mark.parametrize("concat", ["Concat<axis=2>", "Concat<axis=-1>", "other.Concat<axis=1>"])
def test_other_concats_are_not_candidates(concat):
    body = "a = Relu(x)  " + f"c = {concat}(x, a)  y = Relu(x)"
    assert _buses(body, "float[N,3,5,5] y") == ((), ())


BUS = "x0 = Conv(x, w0)  x1 = Conv(x, w1)  s = Concat<axis=1>(x0, x1)  "
# Thresholds -t/s with mean 0 and variance 1: s = gamma, t = beta.
NORM_A = "a = BatchNormalization<epsilon=0.0>(s, ga, ba, zero, one)  ra = Relu(a)  "
NORM_B = "b = BatchNormalization<epsilon=0.0>(s, gb, bb, zero, one)  rb = Relu(b)  "
NUMBERS = (
    "float[1,3,1,1] w0 = {1, 0, 0}, float[2,3,1,1] w1 = {0, 1, 0, 0, 0, 1}, float[3] zero = {0, 0, 0}, "
    "float[3] one = {1, 1, 1}, float[3] gp = {1, 2, 1}, float[3] ga = {1, 2, -1}, float[3] ba = {1, 1, 2}, "
    "float[3] gb = {2, -1, -2}, float[3] bb = {4, 1, 1}, float[2,3,1,1] v = {1, 1, 1, 1, 1, 1}"
)
OUTPUTS = "float[N,3,5,5] ra, float[N,3,5,5] rb"


def _needed(body: str, outputs: str = OUTPUTS) -> Needed:
    (bus,) = find_buses(model_of(body, NUMBERS, outputs=outputs).graph).found
    return needed_range(bus)


def test_what_any_place_of_a_channel_needs_is_needed():
    """A Concat of one tensor twice: channel 0 is clipped at -1 in one place and at -2, times -1, in the other."""
    body = "x0 = Conv(x, w0)  s = Concat<axis=1>(x0, x0, x0)  " + NORM_A
    low, high = _needed(body, "float[N,3,5,5] ra")
    np.testing.assert_array_equal((low, high), [[-np.inf], [np.inf]])
    low, high = _needed(body.replace("ga", "gp"), "float[N,3,5,5] ra")
    np.testing.assert_array_equal((low, high), [[-2], [np.inf]])


def test_values_that_every_reader_clips_are_not_needed():
    low, high = _needed(BUS + NORM_A + NORM_B)
    # channel 0: both clip from below, at -1 and at -2; 1: one from below, one from above; 2: both from above, 2 and 0.5
    np.testing.assert_array_equal(low, [-2, -np.inf, -np.inf])
    np.testing.assert_array_equal(high, [np.inf, np.inf, 2])


@pytest.mark.parametrize(
    ("reader", "output"),
    [
        ("z = Conv(s, v)", "float[N,2,5,5] z"),
        ("z = BatchNormalization(s, ga, ba, zero, one)", "float[N,3,5,5] z"),
        ("n = BatchNormalization(s, ga, ba, zero, one)  z = Sigmoid(n)", "float[N,3,5,5] z"),
        ("n = BatchNormalization(s, ga, ba, zero, one)  z = other.Relu(n)", "float[N,3,5,5] z"),
        ("n = BatchNormalization<training_mode=1>(s, ga, ba, zero, one)  z = Relu(n)", "float[N,3,5,5] z"),
        ("n = Conv(s, v)  z = Relu(n)", "float[N,2,5,5] z"),
        ("n = BatchNormalization(s, ga, ba, zero, one)  z = Relu(n)  m = Neg(n)", "float[N,3,5,5] z, float[N,3,5,5] m"),
    ],
    ids=[
        "a conv",
        "a norm without a Relu",
        "another activation",
        "a Relu of another domain",
        "a norm in training",
        "a conv and a Relu",
        "a norm that others read too",
    ],
)
def test_a_reader_that_clips_nothing_needs_everything(reader, output):
    low, high = _needed(BUS + NORM_A + reader, f"float[N,3,5,5] ra, {output}")
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


def test_all_of_an_output_is_needed():
    low, high = _needed(BUS + NORM_A + NORM_B, f"{OUTPUTS}, float[N,2,5,5] x1")
    np.testing.assert_array_equal(low, [-2, -np.inf, -np.inf])
    np.testing.assert_array_equal(high, [np.inf, np.inf, np.inf])
    low, high = _needed(BUS + NORM_A, f"{OUTPUTS.split(', ')[0]}, float[N,3,5,5] s")
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


def test_a_norm_of_scale_zero_needs_nothing():
    numbers = NUMBERS.replace("ga = {1, 2, -1}, float[3] ba = {1, 1, 2}", "ga = {0, 0, 0}, float[3] ba = {1, -1, 0}")
    assert numbers != NUMBERS
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
    assert (narrow_low.dtype, narrow_high.dtype) == (np.float32, np.float32)


def test_what_is_needed_of_a_part_and_in_finite_numbers():
    segment = Segment(ir.Value(name="a"), (1, 2))
    low, high = Needed(np.array([0, -np.inf, 2, np.inf]), np.array([1, np.inf, 3, -np.inf])).of(segment).finite()
    largest = float(np.finfo(np.float32).max)
    assert (low.tolist(), high.tolist()) == ([-largest, 2], [largest, 3])
    low, high = Needed(np.array([np.inf]), np.array([-np.inf])).finite()
    assert (low.tolist(), high.tolist()) == ([largest], [-largest])


def test_what_is_needed_of_a_norms_output_follows_from_its_input():
    body = "y = BatchNormalization<epsilon=1.0>(x, g, b, m, v)"
    numbers = constants(g=[2, -4, 0, 2], b=[8, 16, 3, 0], m=[32, 64, 0, 0], v=[3, 15, 0, 3])
    norm = maker_of(model_of(body, numbers, "float[N,4,5,5] x", "float[N,4,5,5] y"), "y")
    largest = float(np.finfo(np.float32).max)
    # scales 1, -1, 0, 1 and shifts -24, 80, 3, 0
    low, high = through(norm, Needed(np.array([-2, -3, -largest, -1e300]), np.array([5, 7, largest, 1e300])))
    assert (low.tolist(), high.tolist()) == ([-26, 73, 3, -largest], [-19, 83, 3, largest])

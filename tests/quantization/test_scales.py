"""Types of activations, weights and biases as integers, and bounds of clips beyond all quantized values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from densenet_deploy.graph.nodes import constant, new_initializer
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.scales import (
    QuantizedType,
    affine,
    choose_types,
    hold_bound,
    quantize_rows,
    quantize_with_bias,
    unsigned,
)

# --- types of activations


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (unsigned(510.0), QuantizedType(2.0, 0)),
        (unsigned(1e-8), QuantizedType(1e-8 / 255, 0)),
        (unsigned(2e-8), QuantizedType(2e-8 / 255, 0)),
        (unsigned(0.0), QuantizedType(1e-8 / 255, 0)),
        (unsigned(-3.0), QuantizedType(1e-8 / 255, 0)),
        (affine(-100.0, 155.0), QuantizedType(1.0, 100)),
        (affine(-510.0, -1.0), QuantizedType((1e-8 + 510.0) / 255, 255)),
        (affine(0.5, 510.0), QuantizedType(2.0, 0)),
        (affine(0.0, 0.0), QuantizedType(1e-8 / 255, 0)),
        (affine(0.0, 2e-8), QuantizedType(2e-8 / 255, 0)),
    ],
)
def test_a_type_reaches_just_as_far_as_its_range_and_never_has_scale_zero(found, expected):
    assert found == expected


@pytest.mark.parametrize(
    ("low", "high", "zero_point"),
    [(-2.4, 252.6, 2), (-2.5, 252.5, 2), (-2.6, 252.4, 3), (-3.5, 251.5, 4), (-254.6, 0.4, 255)],
)
def test_a_zero_point_is_rounded_half_to_even(low, high, zero_point):
    assert affine(low, high).zero_point == zero_point


@pytest.mark.parametrize(("zero_point", "lowest", "highest"), [(0, 0.0, 127.5), (128, -64.0, 63.5), (255, -127.5, 0.0)])
def test_the_lowest_and_the_highest_value(zero_point, lowest, highest):
    given = QuantizedType(0.5, zero_point)
    assert (given.lowest, given.highest) == (lowest, highest)


@pytest.mark.parametrize(("zero_point", "dtype", "stored"), [(0, "uint8", 0), (127, "uint8", 127), (128, "int8", 0)])
def test_a_symmetric_type_is_stored_as_int8_with_zero_point_0(zero_point, dtype, stored):
    found = QuantizedType(1.0, zero_point).stored_zero_point
    assert (found.dtype, found) == (dtype, stored)


VALUES = np.float32([-1.0, -0.5, 0.0, 0.25, 0.75, 1.25, 126.9, 1e9, -1e9])


@pytest.mark.parametrize(
    ("zero_point", "codes"),
    [
        (0, [0, 0, 0, 0, 2, 2, 254, 255, 0]),
        (3, [1, 2, 3, 3, 5, 5, 255, 255, 0]),
        (128, [126, 127, 128, 128, 130, 130, 255, 255, 0]),
    ],
)
def test_values_are_rounded_half_to_even_and_saturate(zero_point, codes):
    found = QuantizedType(0.5, zero_point).quantized(VALUES)
    assert found.dtype == np.uint8
    assert found.tolist() == codes


def test_values_are_divided_in_float64():
    """In float32, 0.35 / 0.1 is 3.5, which rounds to 4; the float32 next to 0.35 lies below it."""
    assert QuantizedType(0.1, 0).quantized(np.float32([0.35, 0.05])).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("zero_point", "dtype", "codes"),
    [(127, "uint8", [125, 126, 127, 127, 129, 129, 255, 255, 0]), (128, "int8", [-2, -1, 0, 0, 2, 2, 127, 127, -128])],
)
def test_values_are_stored_as_their_zero_point_is(zero_point, dtype, codes):
    found = QuantizedType(0.5, zero_point).stored(VALUES)
    assert found.dtype == dtype
    assert found.tolist() == codes


# --- types of a graph


def _chosen(body: str, **ranges: tuple[list[float], list[float]]) -> dict[str, QuantizedType]:
    text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[1, 2, 4, 4] x, float[2, 1, 1] k) => (y) {{ {body} }}'
    given = {name: ChannelRanges(np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    return choose_types(ir.from_proto(onnx.parser.parse_model(text)).graph, given)


def test_a_value_that_is_never_negative_is_unsigned_and_another_affine():
    found = _chosen(
        "y = Relu(x)",
        x=([1.0, 0.0], [510.0, 5.0]),
        above=([0.5, 0.25], [5.0, 510.0]),
        below=([-100.0, 3.0], [4.0, 155.0]),
    )
    assert found == {"x": unsigned(510.0), "above": unsigned(510.0), "below": affine(-100.0, 155.0)}


JOINED = "a = Relu(x)  b = Neg(x)  c = Concat<axis=1>(a, b)  y = Relu(c)"


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        (([0.0, 0.0], [1.0, 2.0]), ([0.0, 0.5], [1.0, 4.0]), unsigned(4.0)),
        (([0.5, 0.5], [1.0, 6.0]), ([0.5, 0.5], [1.0, 4.0]), unsigned(6.0)),
        (([0.0, 0.0], [1.0, 2.0]), ([-0.5, 0.0], [1.0, 4.0]), affine(-0.5, 4.0)),
        (([0.0, 0.0], [1.0, 2.0]), ([-8.0, 0.0], [1.0, 4.0]), affine(-8.0, 4.0)),
        (([-8.0, -1.0], [-3.0, 2.0]), ([-0.5, 0.0], [1.0, 4.0]), affine(-8.0, 4.0)),
    ],
)
def test_values_that_meet_in_a_concat_share_a_type_wide_enough_for_all(a, b, shared):
    assert _chosen(JOINED, a=a, b=b) == dict.fromkeys("abc", shared)


def test_only_known_ranges_count_in_a_bus_and_one_without_any_has_no_type():
    two = f"{JOINED.replace('y =', 'r =')}  d = Neg(r)  e = Abs(r)  y = Concat<axis=1>(d, e)"
    assert _chosen(two, b=([-2.0], [1.0])) == dict.fromkeys("abc", affine(-2.0, 1.0))


@pytest.mark.parametrize("node", ["Max(x, k)", "Min(x, k)", "AveragePool<kernel_shape=[2,2]>(x)"])
def test_a_clip_or_an_average_keeps_the_type_of_its_input_unless_it_has_its_own(node):
    low_high = ([-1.0, 0.0], [1.0, 3.0])
    given = affine(-1.0, 3.0)
    assert _chosen(f"y = {node}", x=low_high) == {"x": given, "y": given}
    assert _chosen(f"y = {node}", x=low_high, y=([0.0], [2.0])) == {"x": given, "y": unsigned(2.0)}
    assert _chosen(f"y = {node}", k=low_high) == {"k": given}
    assert _chosen(f"m = {node}  y = Max(m, k)", x=low_high) == dict.fromkeys("xmy", given)


def test_other_nodes_and_nodes_without_inputs_pass_no_type_on():
    body = "o = Constant<value = float {1.0}>()  r = Relu(x)  y = MaxPool<kernel_shape=[2,2]>(r)"
    assert _chosen(body, x=([0.0], [1.0])) == {"x": unsigned(1.0)}


POOL = "MaxPool<kernel_shape=[2,2]>"


@pytest.mark.parametrize(
    ("body", "types"),
    [
        (f"a = Relu(x)  b = {POOL}(a)", "bbc"),
        (f"a = other.Conv(x)  b = {POOL}(a)", "bbc"),
        (f"a = Relu(x)  b = {POOL}(a)  c = {POOL}(b)", "ccc"),
        (f"a = Relu(x)  b = {POOL}(a)  c = Neg(a)", "abc"),
        ("a = Relu(x)  b = AveragePool<kernel_shape=[2,2]>(a)", "abc"),
        ("a = Relu(x)  b = other.MaxPool(a)", "abc"),
        (f"a = Max(x, k)  b = {POOL}(a)", "abc"),
        (f"a = Min(x, k)  b = {POOL}(a)", "abc"),
        (f"a = AveragePool<kernel_shape=[2,2]>(x)  b = {POOL}(a)", "abc"),
        (f"a = Concat<axis=1>(x)  b = {POOL}(a)", "abc"),
        (f"a = Concat<axis=1>(x)  b = {POOL}(a)  c = {POOL}(b)", "acc"),
    ],
)
def test_what_only_a_pool_reads_has_the_type_of_its_output(body, types):
    """Except for values that keep the scale of what they are made of."""
    ranges = {"a": ([-8.0], [4.0]), "b": ([-2.0], [4.0]), "c": ([-1.0], [4.0])}
    own = {name: affine(low, high) for name, ((low,), (high,)) in ranges.items()}
    if "Concat" in body:
        own["a"] = own["x"] = affine(-8.0, 4.0)
    found = _chosen(f"{body}  y = Abs(x)", **ranges)
    assert [found[name] for name in "abc"] == [own[name] for name in types]


def test_a_pool_without_a_type_gives_none_and_a_value_without_one_gets_none():
    assert _chosen(f"a = Relu(x)  y = {POOL}(a)", a=([-1.0], [1.0])) == {"a": affine(-1.0, 1.0)}
    assert _chosen(f"a = Relu(x)  y = {POOL}(a)", y=([-1.0], [1.0])) == {"y": affine(-1.0, 1.0)}


def test_an_input_that_is_left_out_passes_no_type_on():
    node = ir.Node("", "Max", [None], num_outputs=1)
    graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 20})
    assert choose_types(graph, {}) == {}


# --- weights and biases

ROWS = np.array([[127.0, 0.5, 1.5, -0.5, -2.5], [-31.75, 0.125, 0.375, -0.125, 0.1875], [0.0, 0.0, 0.0, 0.0, 0.0]])
INTEGERS = [[127, 0, 2, 0, -2], [-127, 0, 2, 0, 1], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1, 1), (3, 1, 1, 5), (3, 1, 5)])
def test_each_row_has_a_symmetric_scale_and_is_rounded_half_to_even(shape):
    integers, scales = quantize_rows(ROWS.reshape(shape))
    assert (integers.dtype, integers.shape, scales.dtype) == (np.int8, shape, np.float32)
    assert scales.tolist() == [1.0, 0.25, float(np.float32(1e-12))]
    assert integers.reshape(3, 5).tolist() == INTEGERS


def test_seven_bits_end_at_63():
    integers, scales = quantize_rows(np.array([[63.0, -31.5], [-126.0, 3.0]]), bits=7)
    assert scales.tolist() == [1.0, 2.0]
    assert integers.tolist() == [[63, -32], [-63, 2]]


def test_one_scale_for_all_rows_is_the_largest():
    integers, scales = quantize_rows(ROWS.reshape(3, 1, 1, 5), per_channel=False)
    assert (scales.shape, scales) == ((), 1.0)
    assert integers.reshape(3, 5).tolist() == [INTEGERS[0], [-32, 0, 0, 0, 0], [0] * 5]


def test_weights_are_divided_by_the_scale_that_is_stored():
    """2.5/127 is 2.5 steps of 1/127; the float32 next to 1/127 is a little smaller."""
    integers, scales = quantize_rows(np.array([[1.0, 2.5 / 127]]))
    assert scales == [np.float32(1 / 127)]
    assert integers.tolist() == [[127, 3]]


@pytest.mark.parametrize("smallest", [0.5, np.array([0.5, 0.5])])
def test_a_scale_is_not_below_the_smallest(smallest):
    integers, scales = quantize_rows(np.array([[12.7, 1.0], [-127.0, 1.0]]), smallest=smallest)
    assert scales.tolist() == [0.5, 1.0]
    assert integers.tolist() == [[25, 2], [-127, 1]]


def test_one_row_of_one_weight():
    integers, scales = quantize_rows(np.array([[-2.0]]))
    assert (integers.tolist(), scales.tolist()) == ([[-127]], [float(np.float32(2 / 127))])


def test_a_bias_is_rounded_half_to_even_at_the_scale_of_products():
    weights, bias = np.array([[127.0], [-254.0], [127.0], [127.0]]), np.array([1.25, -1.5, 1.75, 0.7])
    integers = quantize_with_bias(weights, bias, 0.5)
    assert integers.values.tolist() == [[127], [-127], [127], [127]]
    assert integers.scales.tolist() == [1.0, 2.0, 1.0, 1.0]
    assert integers.bias.dtype == np.int32
    assert integers.bias.tolist() == [2, -2, 4, 1]


def test_a_bias_is_divided_by_the_scale_that_is_stored():
    """At the exact scale, 1/127, it would be 635000000."""
    assert quantize_with_bias(np.ones((1, 1)), np.ones(1), 2e-7).bias.tolist() == [635000002]


@pytest.mark.parametrize("bias", [0.5, -0.5])
@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_a_nearly_dead_row_keeps_its_bias_at_2_to_the_30(weight, bias):
    """At the weights' own scale the bias would need 6·10¹² and overflow int32."""
    integers = quantize_with_bias(np.array([[weight], [127.0]]), np.array([bias, bias]), 2.0**-7)
    assert integers.scales.tolist() == [2.0**-24, 1.0]
    assert integers.values.tolist() == [[0], [127]]
    assert integers.bias.tolist() == [np.sign(bias) * 2**30, np.sign(bias) * 64]


def test_bits_and_one_scale_for_all_rows_hold_with_a_bias_too():
    rows, bias = np.array([[63.0], [-31.5]]), np.array([1.0, 2.0])
    seven = quantize_with_bias(rows, bias, 0.5, bits=7)
    assert (seven.values.tolist(), seven.scales.tolist(), seven.bias.tolist()) == ([[63], [-63]], [1.0, 0.5], [2, 8])
    one = quantize_with_bias(rows, bias, 0.5, bits=7, per_channel=False)
    assert (one.values.tolist(), one.scales.tolist(), one.bias.tolist()) == ([[63], [-32]], 1.0, [2, 4])


# --- bounds of clips

ONE = unsigned(1.0)
FAR = np.array([0.5, 7.0, -3.0])
PADS = "pads: ints = [1, 1, 1, 1]"
WEIGHT = np.array([[1.0, 2.0, 4.0], [-1.0, 3.0, 5.0]])
CONV = "y = Conv (m, w, b)"


def _graph(
    clip: str, body: str = CONV, bounds: np.ndarray = FAR, weight: np.ndarray = WEIGHT, bias: tuple = (0.0, 0.0)
) -> ir.Graph:
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 20, "other" : 1]>
        g (float[1, 3, 4, 4] x, float[3, 1, 1] free) => (float[1, 2, H, W] y) {{ [clip] m = {clip} (x, bound)  {body} }}
    """)
    kernels = {"w": weight[:, :, None, None], "b": np.array(bias)}
    for name, array in ({"bound": bounds.reshape(-1, 1, 1), "upper": np.float32(5.0)} | kernels).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(model).graph


def _held(graph: ir.Graph, given: QuantizedType = ONE) -> tuple[list, list]:
    """The bounds and the bias after `hold_bound`."""
    hold_bound(graph, graph.node(0), given)
    clip, conv = (next(node for node in graph if node.op_type in kinds) for kinds in (("Max", "Min"), ("Conv",)))
    bounds, bias = constant(clip.inputs[1]), constant(conv.inputs[2])
    assert bounds is not None
    assert bias is not None
    return bounds.reshape(-1).tolist(), bias.tolist()


@pytest.mark.parametrize(
    ("clip", "given", "bounds", "missing"),
    [
        ("Max", ONE, [0.5, 1.0, -3.0], [0, 6.0, 0]),
        ("Min", ONE, [0.5, 7.0, 0.0], [0, 0, -3.0]),
        ("Max", affine(-4.0, 6.2), [0.5, 6.2, -3.0], [0, 0.8, 0]),
        ("Min", affine(-2.0, 8.2), [0.5, 7.0, -2.0], [0, 0, -1.0]),
    ],
)
def test_a_bound_that_nothing_passes_is_moved_and_the_difference_goes_into_the_bias(clip, given, bounds, missing):
    held, bias = _held(_graph(clip, bias=(10.0, 20.0)), given)
    np.testing.assert_allclose(held, bounds, rtol=1e-6)  # stored as float32
    np.testing.assert_allclose(bias, WEIGHT @ missing + [10.0, 20.0], rtol=1e-6)


def test_the_whole_kernel_adds_to_the_bias_and_bound_and_kernel_get_names_of_their_own():
    graph = _graph("Max", "y = Conv (m, w2, b)")
    kernel = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    graph.node(1).replace_input_with(1, new_initializer(graph, "w2.weight", kernel))
    assert _held(graph) == ([0.5, 1.0, -3.0], (6 * kernel[:, 1].sum(axis=(1, 2))).tolist())
    assert (graph.node(0).inputs[1].name, graph.node(1).inputs[2].name) == ("m.held", "w2.held.bias")


@pytest.mark.parametrize(("upper", "missing"), [(3e38, 6.0), (5.0, 4.0), (0.5, 0.0)])
def test_pools_and_other_clips_between_them_are_looked_through(upper, missing):
    body = "n = Min (m, upper)  p = AveragePool <kernel_shape: ints = [2, 2]> (n)  y = Conv (p, w, b)"
    graph = _graph("Max", body)
    graph.initializers["upper"].const_value = ir.tensor(np.float32(upper))
    assert _held(graph)[1] == pytest.approx((WEIGHT @ [0, missing, 0]).tolist())


def test_a_max_between_them_takes_its_part_of_the_difference():
    """min(7, 1) is 1, moved to 2 by the Max where 7 stayed; -3, held at 0, is 2 either way."""
    graph = _graph("Min", "n = Max (m, upper)  y = Conv (n, w, b)")
    graph.initializers["upper"].const_value = ir.tensor(np.float32(-1.0))
    assert _held(graph)[1] == (WEIGHT @ [0, 0, -1.0]).tolist()


@pytest.mark.parametrize(
    "graph",
    [
        _graph("Max", bounds=np.array([0.5, 1.0, -3.0])),
        _graph("Max", "z = Relu (m)  y = Conv (z, w, b)"),
        _graph("Max", "y = Conv (m, w, b)  z = Relu (m)"),
        _graph("Max", "q = Conv (x, w, b)  y = other.Conv (m, w, b)"),
        _graph("Max", f"y = Conv <{PADS}> (m, w, b)"),
        _graph(
            "Max", "p = AveragePool <kernel_shape: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (m)  y = Conv (p, w, b)"
        ),
        _graph("Max", "n = Min (m, free)  y = Conv (n, w, b)"),
        _graph("Max", "n = Add (m, upper)  y = Conv (n, w, b)"),
        _graph("Max", "y = Conv <group: int = 3> (m, w, b)", weight=np.ones((3, 1)), bias=(0.0, 0.0, 0.0)),
        _graph("Max", bounds=np.array([7.0])),
    ],
    ids=[
        "all bounds fit",
        "not read by a Conv",
        "read by others too",
        "a Conv of another domain",
        "a padded Conv",
        "a padded pool",
        "a bound from outside between them",
        "an Add between them",
        "a Conv of groups",
        "one bound for all channels",
    ],
)
def test_a_near_miss_is_unchanged(graph):
    names = [value.name for node in graph for value in node.inputs]
    before = constant(graph.node(0).inputs[1]).reshape(-1).tolist()
    assert _held(graph)[0] == before
    assert [value.name for node in graph for value in node.inputs] == names


def test_a_clip_that_nothing_reads_or_that_is_no_constant_is_unchanged():
    alone = _graph("Max", "y = Relu (x)")
    hold_bound(alone, alone.node(0), ONE)
    assert alone.node(0).inputs[1].name == "bound"
    dynamic = _graph("Max")
    dynamic.node(0).replace_input_with(1, dynamic.inputs[1])
    hold_bound(dynamic, dynamic.node(0), ONE)
    assert [value.name for value in dynamic.node(0).inputs] == ["x", "free"]
    assert dynamic.node(1).inputs[2].name == "b"


@pytest.mark.parametrize("index", [1, 2])
def test_a_conv_without_constant_numbers_is_unchanged(index):
    graph = _graph("Max")
    graph.node(1).replace_input_with(index, graph.inputs[1])
    hold_bound(graph, graph.node(0), ONE)
    assert graph.node(0).inputs[1].name == "bound"


def test_a_conv_without_a_bias_gets_one():
    graph = _graph("Max", "y = Conv (m, w)")
    hold_bound(graph, graph.node(0), ONE)
    assert constant(graph.node(1).inputs[2]).tolist() == (WEIGHT @ [0, 6.0, 0]).tolist()

"""Types of activations, weights and biases as integers, and bounds of clips beyond all quantized values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.graph.nodes import constant, new_initializer
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.quantization.int8_writer import Int8Writer
from densenet_deploy.quantization.observers.observer import ChannelRanges
from densenet_deploy.quantization.recipes.recipe import RecipeOptions
from densenet_deploy.quantization.scales import (
    LIMITS,
    QuantizedType,
    affine,
    hold_bound,
    quantize_rows,
    quantize_with_bias,
    unsigned,
)


@pytest.fixture
def weights():
    return np.random.default_rng(0).standard_normal((8, 4, 3, 3)) * np.logspace(-3, 1, 8).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("bits", LIMITS)
def test_every_weight_is_within_half_a_step(weights, bits):
    integers, scales = quantize_rows(weights, bits=bits)
    assert np.abs(integers).max() == LIMITS[bits]
    column = scales.reshape(-1, 1, 1, 1)
    # half a step, and what a float32 scale rounds by (6e-8) over 127 steps
    assert (np.abs(integers * column - weights) <= column * (0.5 + 127 * 1e-7)).all()


def test_one_scale_for_all_rows(weights):
    integers, scales = quantize_rows(weights, per_channel=False)
    assert scales.shape == ()
    assert np.abs(integers * scales - weights).max() <= scales / 2 * (1 + 1e-5)


def test_zero_weights_are_zero_codes():
    integers, scales = quantize_rows(np.zeros((2, 3, 1, 1)))
    assert not integers.any()
    assert (scales > 0).all()


def test_a_bias_is_kept_to_half_a_step(weights):
    bias = np.linspace(-3, 3, 8)
    integers = quantize_with_bias(weights, bias, 0.02)
    steps = 0.02 * integers.scales
    assert (np.abs(integers.bias * steps - bias) <= steps / 2 * (1 + 1e-4) + 1e-6).all()


def test_a_nearly_dead_channel_keeps_its_bias():
    """A norm with γ = 1e-9 and β = 0.5: at the weights' own scale the bias would need 6·10¹² and overflow int32."""
    weights = np.array([1e-9, 0.3]).reshape(2, 1, 1, 1)
    bias = np.array([0.5, 0.5])
    integers = quantize_with_bias(weights, bias, 0.01)
    steps = 0.01 * integers.scales.astype(np.float64)
    assert (np.abs(integers.bias * steps - bias) <= steps / 2).all()
    assert integers.values[0] == 0
    assert integers.values[1] == 127


def test_an_all_zero_filter_is_its_bias():
    integers = quantize_with_bias(np.zeros((1, 2, 3, 3)), np.array([-2.0]), 0.05)
    assert integers.bias[0] * 0.05 * float(integers.scales[0]) == pytest.approx(-2.0, rel=1e-6)


ONE = unsigned(1.0)
FAR = np.array([0.5, 7.0, -3.0])
PADS = "pads: ints = [1, 1, 1, 1]"
WEIGHT = np.array([[1.0, 2.0, 4.0], [-1.0, 3.0, 5.0]])


def _graph(clip: str, body: str = "y = Conv (m, w, b)", bounds: np.ndarray = FAR) -> ir.Graph:
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 20]>
        g (float[1, 3, 4, 4] x) => (float[1, 2, H, W] y) {{ [clip] m = {clip} (x, bound)  {body} }}
    """)
    for name, array in (("bound", bounds.reshape(-1, 1, 1)), ("w", WEIGHT[:, :, None, None]), ("b", np.zeros(2))):
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
    held, bias = _held(_graph(clip), given)
    np.testing.assert_allclose(held, bounds, rtol=1e-6)
    np.testing.assert_allclose(bias, WEIGHT @ missing, rtol=1e-5)


@pytest.mark.parametrize(("upper", "missing"), [(3e38, 6.0), (5.0, 4.0), (0.5, 0.0)])
def test_pools_and_other_clips_between_them_are_looked_through(upper, missing):
    body = "n = Min (m, upper)  p = AveragePool <kernel_shape: ints = [2, 2]> (n)  y = Conv (p, w, b)"
    graph = _graph("Max", body)
    bound = new_initializer(graph, "upper", np.full((3, 1, 1), upper, np.float32))
    graph.node(1).replace_input_with(1, bound)
    assert _held(graph)[1] == pytest.approx((WEIGHT @ [0, missing, 0]).tolist())


@pytest.mark.parametrize(
    "graph",
    [
        _graph("Max", bounds=np.array([0.5, 1.0, -3.0])),
        _graph("Max", "z = Relu (m)  y = Conv (z, w, b)"),
        _graph("Max", "y = Conv (m, w, b)  z = Relu (m)"),
        _graph("Max", f"y = Conv <{PADS}> (m, w, b)"),
        _graph(
            "Max", "p = AveragePool <kernel_shape: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (m)  y = Conv (p, w, b)"
        ),
    ],
    ids=["all bounds fit", "not read by a Conv", "read by others too", "a padded Conv", "a padded pool"],
)
def test_a_near_miss_is_unchanged(graph):
    before = constant(graph.node(0).inputs[1]).reshape(-1).tolist()
    assert _held(graph) == (before, [0.0, 0.0])


NET = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [c0] a = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w0)
    [n1] n = BatchNormalization (a, gamma, beta, mean, var)
    [r1] r = Relu (n)
    [c1] h = Conv <kernel_shape: ints = [1, 1]> (r, w1)
    [c2] b = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (h, w2)
    [j] j = Concat <axis: int = 1> (a, b)
    [n2] m = BatchNormalization (j, gamma2, beta2, mean2, var2)
    [r2] s = Relu (m)
    [c3] y = Conv <kernel_shape: ints = [1, 1]> (s, w3)
}
"""


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sign", [1, -1])
def test_channels_whose_relu_never_opens_cost_nothing(recipe, sign):
    """Half of the channels of both norms are dead, with scales of a thousandth: θ is 500 to 3000 steps away."""
    rng = np.random.default_rng(0)
    numbers = {"w0": (4, 3, 3, 3), "w1": (8, 4, 1, 1), "w2": (4, 8, 3, 3), "w3": (4, 8, 1, 1)}
    values = {name: rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5 for name, shape in numbers.items()}
    for ending, count in (("", 4), ("2", 8)):
        dead = np.arange(count) % 2 == 0
        values |= {
            f"gamma{ending}": np.where(dead, sign * 1e-3, rng.uniform(0.5, 1, count)),
            f"beta{ending}": np.where(dead, -1.0, 0.3),
            f"mean{ending}": np.zeros(count),
            f"var{ending}": np.ones(count),
        }
    proto = onnx.parser.parse_model(NET)
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in values.items()]
    proto.graph.initializer.extend(tensors)
    proto = onnx.shape_inference.infer_shapes(proto)
    pixels = rng.standard_normal((4, 3, 8, 8)).astype(np.float32)
    exposed = expose_values(proto)
    seen = dict(zip([o.name for o in exposed.graph.output], _run(exposed, pixels), strict=True)) | {"x": pixels}
    ranges = {name: ChannelRanges(a.min((0, 2, 3)), a.max((0, 2, 3))) for name, a in seen.items() if a.ndim == 4}
    writer = Int8Writer(ir.from_proto(proto), ranges, recipe, RecipeOptions(weight_bits=7))  # exact on every CPU
    (found,) = _run(onnx.load_from_string(writer.write().data), pixels)
    noise = ((found - seen["y"]).astype(np.float64) ** 2).sum() / (seen["y"].astype(np.float64) ** 2).sum()
    assert 10 * np.log10(noise) < -35


def _run(proto: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": pixels})

"""The effect of quantization on outputs, measured layer by layer, and corrected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from densenet_deploy.graph.nodes import constant, new_initializer, new_node
from densenet_deploy.graph.onnx_file import expose_values, keep_what_makes
from densenet_deploy.quantization import output_correction
from densenet_deploy.quantization.output_correction import (
    Correction,
    Moments,
    classifier_of,
    conv_corrections,
    correct_classifier,
    correct_conv,
)
from tests.graph.onnx_text import model_of, outputs_of, weights

GAIN, SHIFT = np.array([1.1, 0.9, 1.0, 1.2]), np.array([1.0, -2.0, 0.5, 0.0])

# --- the affine map


def _correction(y: list, y_hat: list) -> tuple[list, list]:
    """Gain and shift of one image after the other, (C,) or (C, pixels) each."""
    moments = Moments()
    for expected, found in zip(y, y_hat, strict=True):
        moments.update(np.float32([expected]), np.float32([found]))
    correction = moments.correction()
    return correction.gain.tolist(), correction.shift.tolist()


def test_gain_and_shift_are_those_of_each_channel():
    """Channel 0: ŷ = y; channel 1: ŷ = (y - 3)/1.125."""
    y = [[[0, 2], [3, 12]], [[4, 6], [21, 30]]]
    y_hat = [[[0, 2], [0, 8]], [[4, 6], [16, 24]]]
    assert _correction(y, y_hat) == ([1.0, 1.125], [0.0, 3.0])


def test_noise_that_is_independent_of_the_output_changes_no_gain():
    """var(y) = 1 and cov(y, ŷ) = 1; regressing y on ŷ would give 1/1.25."""
    gain, shift = _correction([[-1], [-1], [1], [1]], [[-1.5], [-0.5], [0.5], [1.5]])
    assert (gain, shift) == ([1.0], [0.0])


def test_images_count_alike_in_whatever_batches_they_come():
    y, y_hat = np.float32([[0], [1], [5]]), np.float32([[1], [2], [5]])
    moments = Moments()
    moments.update(y[:2], y_hat[:2])
    moments.update(y[2:], y_hat[2:])
    found = moments.correction()
    variance, covariance = 26 / 3 - 4, 27 / 3 - 2 * 8 / 3
    assert found.gain == pytest.approx([1.0 if variance / covariance >= 1.25 else variance / covariance])
    assert found.shift == pytest.approx([2 - found.gain[0] * 8 / 3])


@pytest.mark.parametrize(
    ("wanted", "found", "gain"),
    [
        (5, 4, 1),  # a slope of 1.25
        (5, 4.0625, 5 / 4.0625),
        (4, 5, 1),  # a slope of 0.8
        (4, 4.9375, 4 / 4.9375),
        (2, 0, 1),  # it does not vary at all
        (2, -2, 1),
        (2, 2e-3, 1),
        (2, 2e3, 1),
    ],
)
def test_a_channel_that_hardly_follows_is_only_shifted(wanted, found, gain):
    correction = _correction([[0], [wanted]], [[0], [found]])
    assert correction == ([pytest.approx(gain)], [pytest.approx((wanted - gain * found) / 2, rel=1e-6)])


def test_a_dead_channel_is_only_shifted():
    assert _correction([[3], [3]], [[1], [1]]) == ([1.0], [2.0])
    assert _correction([[0], [0]], [[-1], [1]]) == ([1.0], [0.0])


# --- convolutions

BODY = "a = Conv<pads=[1,1,1,1]>(x, w)  y = Conv(a, v)"
SAMPLES = list(np.random.default_rng(0).standard_normal((4, 1, 3, 5, 5)).astype(np.float32))


def _model() -> ir.Model:
    model = model_of(BODY, weights(w=(4, 3, 3, 3), v=(4, 4, 1, 1)))
    for node, name in zip(model.graph, ("first", "second"), strict=True):
        node.name = name
    return model


def _with_the_second_changed() -> onnx.ModelProto:
    """A stand-in for quantization that makes ŷ = (y - SHIFT) / GAIN of the second Conv's y."""
    model = _model()
    correct_conv(model.graph, model.graph[1], Correction(1 / GAIN, -SHIFT / GAIN))
    return ir.to_proto(model)


def _assert_is(found: Correction, gain: object, shift: object) -> None:
    # sums of 36 products in float32
    np.testing.assert_allclose(found.gain, gain, rtol=1e-4)
    np.testing.assert_allclose(found.shift, shift, atol=1e-3)


def test_the_affine_map_of_every_channel_is_found():
    found = conv_corrections(_model(), _with_the_second_changed(), SAMPLES)
    assert list(found) == ["first", "second"]
    _assert_is(found["second"], GAIN, SHIFT)
    _assert_is(found["first"], 1, 0)


def test_what_is_quantized_is_the_float_network_so_that_errors_do_not_add_up():
    """The first twin gives (y - SHIFT)/GAIN; the second reads, after a QuantizeLinear, what the float network has."""
    model, quantized = _model(), _model()
    graph = quantized.graph
    correct_conv(graph, graph[0], Correction(1 / GAIN, -SHIFT / GAIN))
    first, second = graph[0], graph[1]
    numbers = [
        new_initializer(graph, "scale", np.float32(2.0**-2)),
        new_initializer(graph, "zero_point", np.uint8(128)),
    ]
    quantize = new_node("QuantizeLinear", "a:codes", [first.outputs[0], *numbers])
    restore = new_node("DequantizeLinear", "a:quantized", [quantize.outputs[0], *numbers])
    graph.insert_before(second, [quantize, restore])
    second.replace_input_with(0, restore.outputs[0])
    found = conv_corrections(model, ir.to_proto(quantized), SAMPLES)
    _assert_is(found["first"], GAIN, SHIFT)
    # a step of 1/4 where values spread over 5: noise of 1 % that is nearly independent
    np.testing.assert_allclose(found["second"].gain, 1, atol=0.02)


GRID = "a = Conv<pads=[{p},{p},{p},{p}], strides=[{s},{s}]>(x, w)  y = Relu(a)"


@pytest.mark.parametrize(
    ("size", "stride", "padding", "rows"),
    [
        (13, 1, 1, range(13)),  # twice seven rows are needed to leave out every other one
        (14, 1, 1, range(1, 14, 2)),  # the last reads padding, as one of seven would
        (14, 1, 0, range(12)),
        (30, 2, 1, range(1, 15, 2)),
        (56, 1, 1, range(4, 56, 8)),
    ],
)
def test_a_convolution_is_compared_with_its_twin_on_a_grid(size, stride, padding, rows, monkeypatch):
    body, side = GRID.format(p=padding, s=stride), (size + 2 * padding - 3) // stride + 1
    model = model_of(
        body, weights(w=(4, 3, 3, 3)), inputs=f"float[N,3,{size},{size}] x", outputs=f"float[N,4,{side},{side}] y"
    )
    model.graph[0].name = "c"
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    seen = []
    monkeypatch.setattr(Moments, "update", lambda _, expected, found: seen.append((expected, found)))
    monkeypatch.setattr(Moments, "correction", lambda _, *, with_gain: None)
    sample = np.random.default_rng(1).standard_normal((1, 3, size, size)).astype(np.float32)
    conv_corrections(ir.from_proto(proto), proto, [sample])
    ((expected, found),) = seen
    session = onnxruntime.InferenceSession(expose_values(proto, ["a"]).SerializeToString())
    (whole,) = session.run(None, {"x": sample})
    for measured in (expected, found):
        # sums of 27 products in another order
        np.testing.assert_allclose(measured, whole[:, :, list(rows)][..., list(rows)], atol=1e-5)


READ = """
[k] k = Conv<pads=[1,1,1,1]>(x, v)
{body}
[c] a = Conv<strides=[{s},{s}]>(q, w)  y = Relu(a)
"""
CODES = "k8 = QuantizeLinear(k, scale, zero)  x8 = QuantizeLinear(x, scale, zero)  "


@pytest.mark.parametrize(
    ("body", "stride", "whole"),
    [
        (CODES + "j8 = Concat<axis=1>(k8, x8)  m8 = Max(j8, bound)  q = DequantizeLinear(m8, scale, zero)", 1, []),
        (CODES + "j8 = Concat<axis=-3>(k8, x8)  m8 = Min(j8, bound)  q = DequantizeLinear(m8, scale, zero)", 2, []),
        ("j = Concat<axis=1>(k, x)  q = Relu(j)", 1, ["Relu"]),
        (CODES + "j8 = Concat<axis=1>(k8, x8)  m8 = Max(bound, j8)  q = DequantizeLinear(m8, scale, zero)", 1, ["Max"]),
        (CODES + "j8 = Concat<axis=1>(k8, x8)  m8 = Max(j8, rows)  q = DequantizeLinear(m8, scale, zero)", 1, ["Max"]),
        (
            CODES + "j8 = Concat<axis=1>(k8, x8)  m8 = Min(j8, wide)  q = DequantizeLinear(m8, scale, zero)",
            1,
            ["Min"],
        ),
        (CODES + "j8 = Concat<axis=1>(k8, x8)  m8 = Max(j8, j8)  q = DequantizeLinear(m8, scale, zero)", 1, ["Max"]),
        (
            CODES + "h8 = Concat<axis=2>(k8, k8)  m8 = MaxPool<kernel_shape=[2,1], strides=[2,1]>(h8)  "
            "j8 = Concat<axis=1>(m8, x8)  q = DequantizeLinear(j8, scale, zero)",
            1,
            ["MaxPool"],
        ),
    ],
    ids=["clip", "another clip, strides", "other operator", "first", "rows", "wide", "two maps", "along rows"],
)
def test_a_1x1_convolution_is_compared_at_the_pixels_that_its_bus_has_on_the_grid(body, stride, whole, monkeypatch):
    """`whole` are the operators that the twin computes for all pixels, since they may read others than that pixel."""
    rng, side = np.random.default_rng(2), (28 - 1) // stride + 1
    numbers = {"w": (4, 6, 1, 1), "v": (3, 3, 3, 3)}
    bounds = {"bound": (6, 1, 1), "rows": (28, 1), "wide": (28,)}
    declared = [f"uint8[{','.join(map(str, shape))}] {name} = {_bytes(rng, shape)}" for name, shape in bounds.items()]
    model = model_of(
        READ.format(body=body, s=stride),
        ", ".join([weights(**numbers), "float scale = {0.125}", "uint8 zero = {128}", *declared]),
        inputs="float[N,3,28,28] x",
        outputs=f"float[N,4,{side},{side}] y",
    )
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    seen, exposed = [], []
    monkeypatch.setattr(Moments, "update", lambda _, expected, found: seen.append((expected, found)))
    monkeypatch.setattr(Moments, "correction", lambda _, *, with_gain: None)
    monkeypatch.setattr(output_correction, "_measured", _spied(output_correction._measured, exposed))
    sample = rng.standard_normal((1, 3, 28, 28)).astype(np.float32)
    conv_corrections(ir.from_proto(proto), proto, [sample])
    session = onnxruntime.InferenceSession(expose_values(proto, ["k", "a"]).SerializeToString())
    for (expected, found), wanted in zip(seen, session.run(None, {"x": sample}), strict=True):
        step = wanted.shape[2] // 7
        on_grid = wanted[:, :, max(1, step // 2) if wanted.shape[1] == 3 else step // 2 :: step]
        on_grid = on_grid[..., max(1, step // 2) if wanted.shape[1] == 3 else step // 2 :: step]
        for measured in (expected, found):
            # sums of 27 products in another order
            np.testing.assert_allclose(measured, on_grid, atol=1e-5)
    twins = [node.op_type for node in exposed if node.output[0].startswith("twin:") and node.op_type != "Conv"]
    assert [kind for kind in twins if kind in ("Relu", "Max", "Min", "MaxPool")] == whole


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, rng.integers(100, 140, shape).ravel())) + "}"


def _spied(measured: Callable[..., Iterator[dict]], into: list[onnx.NodeProto]) -> Callable[..., Iterator[dict]]:
    def spy(both: onnx.ModelProto, names: Collection[str], samples: Iterable[np.ndarray]) -> Iterator[dict]:
        kept = onnx.ModelProto()
        kept.CopyFrom(both)
        keep_what_makes(kept.graph, names)
        into.extend(kept.graph.node)
        return measured(both, names, samples)

    return spy


BRANCHES = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[N,3,5,5] x) => (float[N,4,5,5] y, float[N,4,5,5] z) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    q = Identity (a)
    z = If (yes) <then_branch = one () => (float[N,4,5,5] i) { i = Relu(q) },
                  else_branch = two () => (float[N,4,5,5] j) { j = Neg(a) }>
    y = Conv(a, v)
}
"""


def test_branches_that_read_values_from_outside_are_measured_beside_it_too():
    def branched(text: str) -> ir.Model:
        proto = onnx.parser.parse_model(text)
        rng = np.random.default_rng(0)
        for name, array in (
            ("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32)),
            ("v", rng.standard_normal((4, 4, 1, 1)).astype(np.float32)),
            ("yes", np.array(True)),
        ):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        model = ir.from_proto(proto)
        for number, node in enumerate(model.graph):
            node.name = str(number)
        return model

    changed = branched(BRANCHES.replace("q", "a_quantized"))  # a name that only one of both has
    correct_conv(changed.graph, changed.graph[3], Correction(1 / GAIN, -SHIFT / GAIN))
    found = conv_corrections(branched(BRANCHES), ir.to_proto(changed), SAMPLES)
    np.testing.assert_allclose(found["3"].gain, GAIN, rtol=1e-4)


def test_a_corrected_convolution_gives_the_affine_map_of_what_it_gave():
    model = _model()
    before = outputs_of(model)[0]
    correct_conv(model.graph, model.graph[1], Correction(GAIN, SHIFT))
    after = outputs_of(model)[0]
    # two roundings of constants, sums of 4 products
    np.testing.assert_allclose(after, before * GAIN[:, None, None] + SHIFT[:, None, None], atol=1e-5)
    assert [value.name for value in model.graph[1].inputs] == ["a", "v.corrected.weight", "v.corrected.bias"]


def test_a_bias_that_was_there_is_scaled_and_shifted():
    model = _model()
    conv = model.graph[1]
    conv.resize_inputs(3)
    conv.replace_input_with(2, new_initializer(model.graph, "bias", np.arange(4, dtype=np.float32)))
    correct_conv(model.graph, conv, Correction(np.full(4, 2.0), np.ones(4)))
    assert constant(conv.inputs[2]).tolist() == [1, 3, 5, 7]


def test_weights_that_are_not_constants_are_unchanged():
    model = model_of("y = Conv(x, k)", "", inputs="float[N,3,5,5] x, float[4,3,1,1] k")
    correct_conv(model.graph, model.graph[0], Correction(GAIN, SHIFT))
    assert len(model.graph[0].inputs) == 2


# --- the classifier

HEAD = "p = GlobalAveragePool(x)  f = Flatten(p)  y = Gemm<transB=1>(f, w, b)"


@pytest.mark.parametrize("transposed", ["<transB=1>", "<transB=0>", ""])
def test_the_classifier_takes_back_what_is_left(transposed):
    shape = (4, 3) if transposed == "<transB=1>" else (3, 4)
    model = model_of(HEAD.replace("<transB=1>", transposed), weights(w=shape, b=(4,)), outputs="float[N,4] y")
    (found,) = outputs_of(model)
    wanted = (found * GAIN + SHIFT).astype(np.float32)
    gemm = classifier_of(model.graph)
    correct_classifier(model.graph, gemm, [wanted[:1], wanted[1:]], [found[:1], found[1:]])
    assert [value.name for value in gemm.inputs] == ["f", "w:corrected", "b:corrected"]
    np.testing.assert_allclose(outputs_of(model)[0], wanted, rtol=1e-4, atol=1e-4)


def _classifier(body: str, outputs: str = "float[N,4] y") -> ir.Node | None:
    inputs = "float[N,3,5,5] x, float[4,3] k, float[4] c"
    return classifier_of(model_of(body, weights(w=(4, 3), b=(4,)), inputs, outputs).graph)


@pytest.mark.parametrize(
    "body",
    [
        "p = GlobalAveragePool(x)  y = Flatten(p)",
        HEAD.replace("<transB=1>", "<transB=1, alpha=2.0>"),
        HEAD.replace("<transB=1>", "<transB=1, beta=2.0>"),
        HEAD.replace("(f, w, b)", "(f, w)"),
        HEAD.replace("(f, w, b)", "(f, k, b)"),
        HEAD.replace("(f, w, b)", "(f, w, c)"),
        HEAD.replace("y = Gemm", "g = Gemm") + "  y = Relu(g)",
        HEAD.replace("y = Gemm<transB=1>", "y = other.Gemm"),
        HEAD.replace("y = Gemm", "g = Gemm") + "  y = Mul(g, f)",
        HEAD.replace("y = Gemm", "g = Gemm") + "  y = Mul(g, c)",
        HEAD.replace("y = Gemm", "g = Gemm") + "  h = Gemm<transB=1>(f, w, b)  y = Mul(g, h)",
    ],
    ids=[
        "features",
        "a scaled product",
        "a scaled bias",
        "no bias",
        "weights from outside",
        "a bias from outside",
        "a Gemm before something else",
        "an operator of another domain",
        "features beside it",
        "an input beside it",
        "two of them",
    ],
)
def test_another_head_is_not_a_classifier_to_correct(body):
    assert _classifier(body, "float[N,3] y" if "Gemm" not in body else "float[N,4] y") is None


def test_a_scale_of_the_outputs_may_follow():
    """Below its threshold, b, a probability is halved; above, it is moved towards 1."""
    scaled = """
    g = Gemm<transB=1>(f, w, b)  s = Sigmoid(g)  l = Less(s, b)  m = Mul(s, b)  n = Sub(b, s)  y = Where(l, m, n)
    """
    gemm = _classifier(HEAD.replace("y = Gemm<transB=1>(f, w, b)", scaled))
    assert gemm is not None
    assert gemm.outputs[0].name == "g"


def test_a_gemm_of_constants_that_makes_the_only_output_is():
    assert _classifier(HEAD) is not None
    assert _classifier(HEAD.replace("<transB=1>", "<transB=1, alpha=1.0, beta=1.0>")) is not None
    assert _classifier(HEAD, "float[N,4] y, float[N,3] f") is None
    assert classifier_of(model_of("", "", "float[N,4] y", "float[N,4] y").graph) is None

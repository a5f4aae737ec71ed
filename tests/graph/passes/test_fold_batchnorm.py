"""Folding a norm into its convolution: what is computed stays, and a norm that must not be folded is skipped."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.graph.graph_pass import apply_passes
from densenet_deploy.graph.passes.fold_batchnorm import FoldBatchNorm
from tests.graph.onnx_text import constants, model_of, numbers_of, operators, outputs_of, weights
from tests.graph.passes.checks import assert_tidy

# One rounding of each folded weight and of each sum over at most 27 products near 1: a few float32 ulps of ~10.
ROUNDING = 1e-5

NORM = {"gamma": (4,), "beta": (4,), "mean": (4,), "var": (4,)}
CONV_NORM = "c = Conv<pads=[1,1,1,1]>(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)"


def _folded(model):
    """Run the pass on `model` and return its report; outputs must be the same before and after."""
    before = outputs_of(model)
    (report,) = apply_passes(model, ["fold-batchnorm"])
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_allclose(new, old, rtol=ROUNDING, atol=ROUNDING)
    return report


def _skipped(model):
    """Run the pass on `model`, which must come back with the same nodes and the very same outputs; return why."""
    nodes, before = operators(model), outputs_of(model)
    (report,) = apply_passes(model, ["fold-batchnorm"])
    assert (report.changed, operators(model)) == ((), nodes)
    for old, new in zip(before, outputs_of(model), strict=True):
        np.testing.assert_array_equal(new, old)
    (why,) = report.skipped
    return why


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (CONV_NORM, {"w": (4, 3, 3, 3)}),
        ("c = Conv(x, w, bias)  y = BatchNormalization(c, gamma, beta, mean, var)", {"w": (4, 3, 1, 1), "bias": (4,)}),
        ("c = Conv(x, w)  y = BatchNormalization<epsilon=0.5>(c, gamma, beta, mean, var)", {"w": (4, 3, 1, 1)}),
    ],
    ids=["no bias", "bias", "epsilon"],
)
def test_a_norm_after_a_conv_is_folded(body, shapes):
    model = model_of(body, weights(**shapes, **NORM))
    assert _folded(model).skipped == ()
    assert operators(model) == ["Conv"]
    assert len(model.graph.initializers) == 2  # folded weight and bias; what they were made of is gone


def test_rows_are_scaled_and_the_bias_too_before_it_is_shifted():
    numbers = constants(
        w=np.reshape([[1, 2, 4], [8, 16, 32]], (2, 3, 1, 1)), c=[5, 7], g=[2, -4], b=[8, 16], m=[32, 64], v=[3, 15]
    )
    body = "k = Conv(x, w, c)  y = BatchNormalization<epsilon=1.0>(k, g, b, m, v)"
    model = model_of(body, numbers, outputs="float[N,2,5,5] y")
    FoldBatchNorm()(model)
    assert_tidy(model)
    (conv,) = model.graph
    assert numbers_of(conv.inputs[1]).ravel().tolist() == [1, 2, 4, -8, -16, -32]  # scales 1 and -1
    assert numbers_of(conv.inputs[2]).tolist() == [5 + 8 - 32, -7 + 16 + 64]


def test_a_conv_whose_optional_bias_is_left_empty_is_folded():
    model = model_of(CONV_NORM, weights(w=(4, 3, 3, 3), **NORM))
    next(iter(model.graph)).resize_inputs(3)
    _folded(model)
    assert operators(model) == ["Conv"]


def test_a_grouped_conv_is_folded():
    body = "c = Conv<group=2>(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)"
    model = model_of(body, weights(w=(4, 2, 1, 1), **NORM), inputs="float[N,4,5,5] x")
    _folded(model)
    assert operators(model) == ["Conv"]


def test_a_conv_of_one_dimension_is_folded():
    body = "c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)"
    model = model_of(body, weights(w=(4, 3, 1), **NORM), inputs="float[N,3,5] x", outputs="float[N,4,5] y")
    _folded(model)
    assert operators(model) == ["Conv"]


def test_norms_in_a_row_are_all_folded():
    body = (
        "c = Conv(x, w)  n = BatchNormalization(c, gamma, beta, mean, var)"
        "  y = BatchNormalization(n, gamma, beta, mean, var)"
    )
    model = model_of(body, weights(w=(4, 3, 1, 1), **NORM))
    assert len(_folded(model).changed) == 2
    assert operators(model) == ["Conv"]


def test_numbers_of_constant_nodes_are_constants():
    constants = "w = Constant<value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,12}>()  "
    model = model_of(constants + "c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)", weights(**NORM))
    _folded(model)
    assert operators(model) == ["Conv"]


def test_the_conv_takes_the_name_type_and_shape_of_the_norms_output():
    model = model_of(CONV_NORM + "  z = Relu(y)", weights(w=(4, 3, 3, 3), **NORM), outputs="float[N,4,5,5] z")
    _folded(model)
    assert [node.outputs[0].name for node in model.graph] == ["y", "z"]
    graph_output = model_of(CONV_NORM, weights(w=(4, 3, 3, 3), **NORM))
    (declared,) = graph_output.graph.outputs
    facts = (declared.name, declared.type, declared.shape)
    _folded(graph_output)
    (kept,) = graph_output.graph.outputs
    assert (kept.name, kept.type, kept.shape) == facts


def test_folded_numbers_are_named_after_the_weight():
    model = model_of(CONV_NORM, weights(w=(4, 3, 3, 3), **NORM))
    model.graph.initializers["w"].name = "features.conv0.weight"
    _folded(model)
    assert set(model.graph.initializers) == {"features.conv0.folded.weight", "features.conv0.folded.bias"}


def test_a_weight_that_two_convs_share_is_folded_for_each_alone():
    body = (
        "a = Conv(x, w)  p = BatchNormalization(a, gamma, beta, mean, var)"
        "  b = Conv(x, w)  q = BatchNormalization(b, beta, gamma, var, mean)"
    )
    model = model_of(body, weights(w=(4, 3, 1, 1), **NORM), outputs="float[N,4,5,5] p, float[N,4,5,5] q")
    assert len(_folded(model).changed) == 2
    assert len({conv.inputs[1].name for conv in model.graph}) == 2


def test_a_weight_that_another_conv_reads_without_norm_stays():
    body = CONV_NORM + "  z = Conv<pads=[1,1,1,1]>(x, w)"
    model = model_of(body, weights(w=(4, 3, 3, 3), **NORM), outputs="float[N,4,5,5] y, float[N,4,5,5] z")
    _folded(model)
    assert "w" in model.graph.initializers


def test_new_names_avoid_those_in_use():
    model = model_of("a = Relu(x)  " + CONV_NORM.replace("(x,", "(a,"), weights(w=(4, 3, 3, 3), **NORM))
    next(iter(model.graph)).outputs[0].name = "w.folded.weight"
    _folded(model)
    assert operators(model) == ["Relu", "Conv"]


def test_a_norm_after_concat_is_skipped():
    body = "a = Concat<axis=1>(x, x)  y = BatchNormalization(a, gamma, beta, mean, var)"
    model = model_of(body, weights(**NORM), inputs="float[N,2,5,5] x")
    assert _skipped(model) == "BatchNormalization: it follows Concat, not a Conv"


def test_a_norm_on_the_input_is_skipped():
    model = model_of("y = BatchNormalization(x, gamma, beta, mean, var)", weights(**NORM), inputs="float[N,4,5,5] x")
    assert "it follows an input" in _skipped(model)


def test_a_conv_with_a_second_reader_is_skipped():
    body = CONV_NORM + "  z = Relu(c)"
    model = model_of(body, weights(w=(4, 3, 3, 3), **NORM), outputs="float[N,4,5,5] y, float[N,4,5,5] z")
    assert "other readers" in _skipped(model)


def test_a_conv_that_is_read_twice_by_one_node_is_skipped():
    body = "c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)  z = Add(c, c)"
    model = model_of(body, weights(w=(4, 3, 1, 1), **NORM), outputs="float[N,4,5,5] y, float[N,4,5,5] z")
    assert "other readers" in _skipped(model)


def test_a_conv_whose_output_leaves_the_graph_is_skipped():
    model = model_of(CONV_NORM, weights(w=(4, 3, 3, 3), **NORM), outputs="float[N,4,5,5] y, float[N,4,5,5] c")
    assert "other readers" in _skipped(model)


def test_a_norm_in_training_is_skipped():
    body = "c = Conv(x, w)  y, m, v = BatchNormalization<training_mode=1>(c, gamma, beta, mean, var)"
    assert "training" in _skipped(model_of(body, weights(w=(4, 3, 1, 1), **NORM)))


def test_a_norm_in_training_by_its_outputs_is_skipped():
    header = '<ir_version: 4, opset_import: ["" : 9]>'
    body = "c = Conv(x, w)  y, m, v, sm, sv = BatchNormalization(c, gamma, beta, mean, var)"
    model = model_of(body, weights(w=(4, 3, 1, 1), **NORM), header=header)
    (report,) = apply_passes(model, ["fold-batchnorm"])  # ONNX Runtime runs no training norm of this opset
    assert report.changed == ()
    assert "training" in report.skipped[0]


@pytest.mark.parametrize("fed", ["w", "gamma"])
def test_numbers_that_are_fed_are_not_constants(fed):
    shapes = {"w": (4, 3, 3, 3), **NORM}
    size = ",".join(map(str, shapes.pop(fed)))
    model = model_of(CONV_NORM, weights(**shapes), inputs=f"float[N,3,5,5] x, float[{size}] {fed}")
    assert "not float32 constants" in _skipped(model)


def test_a_default_that_a_caller_may_override_is_not_a_constant():
    model = model_of(
        CONV_NORM,
        weights(w=(4, 3, 3, 3), **NORM),
        inputs="float[N,3,5,5] x, float[4,3,3,3] w",
    )
    assert "not float32 constants" in _skipped(model)


def test_other_precisions_are_skipped():
    double = weights(w=(4, 3, 3, 3), **NORM).replace("float[", "double[")
    model = model_of(CONV_NORM, double, inputs="double[N,3,5,5] x", outputs="double[N,4,5,5] y")
    (report,) = apply_passes(model, ["fold-batchnorm"])
    assert report.changed == ()
    assert "not float32 constants" in report.skipped[0]


def test_operators_of_another_domain_are_not_ours():
    shapes = weights(w=(4, 3, 1, 1), **NORM)
    conv = model_of("c = other.Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)", shapes)
    norm = model_of("c = Conv(x, w)  y = other.BatchNormalization(c, gamma, beta, mean, var)", shapes)
    assert [apply_passes(model, ["fold-batchnorm"])[0].changed for model in (conv, norm)] == [(), ()]
    assert operators(conv) == operators(norm) == ["Conv", "BatchNormalization"]

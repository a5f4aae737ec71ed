"""Pooling before a 1x1 convolution instead of after it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from densenet_deploy.graph.passes.pool_before_conv import PoolBeforeConv
from densenet_deploy.graph.tensor_changes import TensorChange, TensorChanges, read_tensor_changes
from tests.graph.onnx_text import maker_of, model_of, operators, value_named, weights
from tests.graph.passes.checks import assert_tidy, rewritten, skipped

NAME = "pool-before-conv"
CONV = "r = Relu(x)  c = Conv(r, w)  "
POOL = "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)"
OUTPUT = "float[N,4,h,k] y"


def _model(body: str, outputs: str = OUTPUT, inputs: str = "float[N,4,7,6] x", **shapes):
    return model_of(body, weights(**(shapes or {"w": (4, 4, 1, 1)})), inputs, outputs)


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (CONV + POOL, {"w": (4, 4, 1, 1)}),
        ("r = Relu(x)  c = Conv(r, w, b)  " + POOL, {"w": (4, 4, 1, 1), "b": (4,)}),
        ("r = Relu(x)  c = Conv<group=2>(r, w)  " + POOL, {"w": (4, 2, 1, 1)}),
        ("r = Relu(x)  c = Conv<kernel_shape=[1,1], strides=[1,1], pads=[0,0,0,0]>(r, w)  " + POOL, {}),
        ('r = Relu(x)  c = Conv<dilations=[3,3], auto_pad="VALID">(r, w)  ' + POOL, {}),
        (CONV + POOL.replace("<", "<count_include_pad=1, ceil_mode=0, pads=[0,0,0,0], "), {}),
    ],
    ids=["no bias", "bias", "groups", "attributes spelt out", "valid padding", "pool spelt out"],
)
def test_the_pool_goes_first(body, shapes):
    model = _model(body, **shapes)
    rewritten(model, NAME)
    assert operators(model) == ["Relu", "AveragePool", "Conv"]


def test_the_conv_takes_the_pools_name_and_the_pooled_input_is_recorded():
    model = _model(CONV + POOL + "  z = Neg(y)", outputs="float[N,4,h,k] z")
    rewritten(model, NAME)
    assert [node.outputs[0].name for node in model.graph] == ["r", "r:pooled", "y", "z"]
    (change,) = read_tensor_changes(model.metadata_props).items()
    assert change == ("r:pooled", TensorChange("r", None, "pooled before the Conv, which was pooled after"))


def test_the_pooled_input_has_its_channels_and_the_pixels_of_the_result():
    model = model_of(
        "r = Relu(x)  c = Conv(r, w)  " + POOL, weights(w=(2, 4, 1, 1)), "float[N,4,7,6] x", "float[N,2,3,3] y"
    )
    value_named(model, "r").shape = ir.Shape(["N", 4, 7, 6])
    PoolBeforeConv()(model)
    assert value_named(model, "r:pooled").shape == ir.Shape(["N", 4, 3, 3])


def test_the_pool_keeps_its_name_and_the_pooled_input_its_type():
    model = _model("r = Relu(x)  c = Conv(r, w)  [halve] " + POOL)
    value_named(model, "r").type = ir.TensorType(ir.DataType.FLOAT)
    outcome = PoolBeforeConv()(model)
    assert (outcome.changed, outcome.skipped) == (("halve",), ())
    assert_tidy(model)
    pool = maker_of(model, "r:pooled")
    assert (pool.op_type, pool.name, pool.outputs[0].dtype) == ("AveragePool", "halve", ir.DataType.FLOAT)


def test_a_conv_without_a_weight_is_skipped():
    model = _model(CONV + POOL)
    maker_of(model, "c").replace_input_with(1, None)
    assert isinstance(PoolBeforeConv().match(maker_of(model, "y")), str)


def test_no_shape_of_unpooled_pixels_stays():
    model = _model(CONV + POOL + "  z = Neg(y)", outputs="float[N,4,h,k] z")
    model.graph[1].outputs[0].shape = ir.Shape(["N", 4, 7, 6])
    rewritten(model, NAME)
    assert model.graph[2].outputs[0].shape is None


def test_the_pooled_input_of_a_scaled_tensor_keeps_its_factor():
    model = _model(CONV + POOL)
    changes = TensorChanges.of(model)
    changes.scale(model.graph, model.graph[0].outputs[0], np.full(4, 2, np.float32))
    changes.write_to(model)
    rewritten(model, NAME)
    change = read_tensor_changes(model.metadata_props)["r:scaled:pooled"]
    assert (change.of, change.factor) == ("r", (2, 2, 2, 2))


def test_an_input_of_the_graph_is_pooled_too():
    model = _model("c = Conv(x, w)  " + POOL)
    rewritten(model, NAME)
    assert operators(model) == ["AveragePool", "Conv"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (CONV.replace("(r", "<pads=[1,1,1,1]>(r") + POOL, "Conv pads"),
        (CONV.replace("(r", '<auto_pad="SAME_UPPER">(r') + POOL, "Conv pads"),
        (CONV.replace("(r", "<strides=[2,1]>(r") + POOL, "stride"),
        (CONV + POOL.replace("strides", "pads=[1,1,0,0], strides"), "it pads"),
        (CONV + POOL.replace("strides", 'auto_pad="SAME_LOWER", strides'), "it pads"),
        (CONV + POOL.replace("strides", "ceil_mode=1, strides"), "rounds sizes up"),
        (CONV + POOL.replace("kernel_shape=[2,2]", "kernel_shape=[3,3]"), "not 2x2"),
        (CONV + POOL.replace("strides=[2,2]", "strides=[1,1]"), "not 2x2"),
        (CONV + POOL.replace(", strides=[2,2]", ""), "not 2x2"),
        ("r = Relu(x)  c = Sigmoid(r)  " + POOL, "follows Sigmoid"),
        (POOL.replace("(c)", "(x)"), "follows an input"),
        ("r = Relu(x)  c = other.Conv(r, w)  " + POOL, "follows Conv, not a Conv"),
    ],
)
def test_a_pair_that_does_not_commute_is_skipped(body, why):
    model = _model(body, inputs="float[N,4,7,6] x")
    assert why in skipped(model, NAME)


def test_a_dilated_pool_is_skipped():
    body = CONV + POOL.replace("strides", "dilations=[2,2], strides")
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    assert "not 2x2" in skipped(model_of(body, weights(w=(4, 4, 1, 1)), "float[N,4,7,6] x", OUTPUT, header), NAME)


def test_a_larger_kernel_is_skipped():
    assert "not known to be 1x1" in skipped(_model(CONV + POOL, w=(4, 4, 3, 3)), NAME)


def test_a_kernel_of_unknown_size_is_skipped():
    model = _model("w = Identity(v)  " + CONV + POOL, v=(4, 4, 1, 1))
    assert "not known to be 1x1" in skipped(model, NAME)


def test_a_conv_with_a_second_reader_is_skipped():
    model = _model(CONV + POOL + "  z = Neg(c)", outputs=f"{OUTPUT}, float[N,4,7,6] z")
    assert "other readers" in skipped(model, NAME)


def test_a_conv_that_leaves_the_graph_is_skipped():
    assert "other readers" in skipped(_model(CONV + POOL, outputs=f"{OUTPUT}, float[N,4,7,6] c"), NAME)


def test_other_pools_are_not_ours():
    assert skipped(_model(CONV + POOL.replace("AveragePool", "MaxPool")), NAME) == ""

"""Costs counted in ONNX graphs: node by node in small texts, and in an exported DenseNet against its numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx
import onnx_ir
import pytest

from densenet_deploy.analysis.cost import LayerCost, model_cost
from densenet_deploy.analysis.onnx_cost import onnx_cost
from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.models.build import build_model
from densenet_deploy.models.to_onnx import OnnxOptions, onnx_from_module
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.variants.spec import DenseNetSpec


def model_of(
    body, initializers="", inputs="float[N,3,8,8] x", result="float[] y", opset='"" : 20, "com.microsoft" : 1'
):
    text = f"<ir_version: 10, opset_import: [{opset}]> g ({inputs}) => ({result}) <{initializers}> {{ {body} }}"
    return onnx.parser.parse_model(text)


def zeros(kind, *shape, name):
    numbers = ",".join("0" * math.prod(shape))
    return f"{kind}[{','.join(map(str, shape))}] {name} = {{{numbers}}}"


def only_layer(model):
    (layer,) = onnx_cost(model).layers
    return layer


def test_a_convolution_uses_each_weight_once_per_output_pixel():
    weights = zeros("float", 4, 3, 3, 3, name="w") + ", " + zeros("float", 4, name="b")
    model = model_of("y = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w, b)", weights)
    model.graph.node[0].name = "features.conv0"
    weight_count = 4 * 3 * 3 * 3
    assert only_layer(model) == LayerCost("features.conv0", weight_count + 4, weight_count * 4 * 4, (4, 4, 4))


def test_a_grouped_convolution_multiplies_only_within_its_group():
    model = model_of("y = Conv <group=3> (x, w)", zeros("float", 3, 1, 1, 1, name="w"))
    assert only_layer(model) == LayerCost("y", 3, 3 * 8 * 8, (3, 8, 8))


def test_a_normalization_has_scale_and_shift_but_no_statistics_and_no_macs():
    stored = ", ".join(zeros("float", 3, name=name) for name in ("scale", "shift", "mean", "var"))
    model = model_of("y = BatchNormalization (x, scale, shift, mean, var)", stored)
    assert only_layer(model) == LayerCost("y", 6, 0, (3, 8, 8))


@pytest.mark.parametrize(
    ("body", "weight_shape"),
    [("y = Gemm (x, w)", (6, 5)), ("y = Gemm <transB=1> (x, w)", (5, 6)), ("y = MatMul (x, w)", (6, 5))],
)
def test_a_matrix_product_uses_each_weight_once_per_row(body, weight_shape):
    model = model_of(body, zeros("float", *weight_shape, name="w"), inputs="float[N,6] x")
    assert only_layer(model) == LayerCost("y", 30, 30, (5,))


def test_shapes_are_not_parameters_and_operators_without_weights_cost_nothing():
    model = model_of("p = Relu (x) y = Reshape (p, shape)", "int64[2] shape = {0, -1}")
    assert onnx_cost(model).layers == ()


def test_a_tensor_shared_by_two_nodes_counts_once():
    body = "[first] a = Conv (x, w, b) [second] c = Conv (a, w, b) [third] y = Conv (c, w, d)"
    stored = [zeros("float", 3, 3, 1, 1, name="w"), zeros("float", 3, name="b"), zeros("float", 3, name="d")]
    cost = onnx_cost(model_of(body, ", ".join(stored)))
    assert [(layer.name, layer.parameters) for layer in cost.layers] == [("first", 12), ("second", 0), ("third", 3)]
    assert cost.macs == 3 * 9 * 64


def test_a_bias_that_is_computed_is_no_parameter():
    body = "b = Neg (n) y = Conv (x, w, b)"
    stored = [zeros("float", 4, 3, 1, 1, name="w"), zeros("float", 4, name="n")]
    assert only_layer(model_of(body, ", ".join(stored))) == LayerCost("y", 12, 12 * 64, (4, 8, 8))


REWRITING = {
    "DequantizeLinear <axis=0> (w, s, z)": "int8",
    "Cast <to=1> (w)": "float16",
    "Identity (w)": "float",
    "Transpose <perm=[0,1,2,3]> (w)": "float",
}


@pytest.mark.parametrize(("operator", "kind"), REWRITING.items())
def test_a_weight_is_found_behind_what_only_rewrites_its_numbers_and_scales_do_not_count(operator, kind):
    stored = ", ".join([zeros(kind, 4, 3, 1, 1, name="w"), "float[1] s = {1.0}", "int8[1] z = {0}"])
    model = model_of(f"f = {operator} g = Identity (f) y = Conv (x, g)", stored)
    assert only_layer(model) == LayerCost("y", 12, 12 * 64, (4, 8, 8))


def test_a_weight_behind_anything_else_is_computed():
    with pytest.raises(ModelFileError) as caught:
        onnx_cost(model_of("f = Neg (w) y = Conv (x, f)", zeros("float", 4, 3, 1, 1, name="w")))
    assert caught.value.subject == "y"


SCALE = "float s = {1.0}, uint8 z = {0}"

# Of each operator with integer numbers: its node, its stored tensors, its input, and its parameters, MACs and output.
INTEGER = {
    "ConvInteger": ("ConvInteger (x, w)", [("uint8", 4, 3, 1, 1)], "uint8[N,3,8,8]", (12, 12 * 64, (4, 8, 8))),
    "QLinearConv": (
        "QLinearConv (x, s, z, w, s, z, s, z, b)",
        [("uint8", 4, 3, 1, 1), ("int32", 4)],
        "uint8[N,3,8,8]",
        (16, 12 * 64, (4, 8, 8)),
    ),
    "QLinearConv without bias": (
        "QLinearConv (x, s, z, w, s, z, s, z)",
        [("uint8", 4, 3, 1, 1)],
        "uint8[N,3,8,8]",
        (12, 12 * 64, (4, 8, 8)),
    ),
    "MatMulInteger": ("MatMulInteger (x, w)", [("uint8", 6, 5)], "uint8[N,6]", (30, 30, (5,))),
    "QLinearMatMul": ("QLinearMatMul (x, s, z, w, s, z, s, z)", [("uint8", 6, 5)], "uint8[N,6]", (30, 30, (5,))),
    "QGemm": (
        "com.microsoft.QGemm (x, s, z, w, s, z, b, s, z)",
        [("uint8", 6, 5), ("int32", 5)],
        "uint8[N,6]",
        (35, 30, (5,)),
    ),
    "QGemm, transposed": (
        "com.microsoft.QGemm <transB=1> (x, s, z, w, s, z, b, s, z)",
        [("uint8", 5, 6), ("int32", 5)],
        "uint8[N,6]",
        (35, 30, (5,)),
    ),
}


@pytest.mark.parametrize(("node", "tensors", "inputs", "expected"), INTEGER.values(), ids=INTEGER)
def test_integer_operators_have_weights_and_biases_but_scales_do_not_count(node, tensors, inputs, expected):
    stored = [zeros(kind, *shape, name=name) for name, (kind, *shape) in zip("wb", tensors, strict=False)]
    result = "int32" if "Integer" in node else "uint8"
    model = model_of(f"y = {node}", ", ".join([SCALE, *stored]), inputs=f"{inputs} x", result=f"{result}[] y")
    assert only_layer(model) == LayerCost("y", *expected)


def integer_pool(pool="QLinearAveragePool <kernel_shape=[2,2], strides=[2,2]>"):
    body = f"""
        c = QLinearConv (x, s, z, w, s, z, s, z)
        p = com.microsoft.{pool} (c, s, z, s, z)
        y = QLinearConv (p, s, z, w, s, z, s, z)
    """
    return model_of(body, f"{zeros('uint8', 3, 3, 1, 1, name='w')}, {SCALE}", "uint8[N,3,8,8] x", "uint8[] y")


@pytest.mark.parametrize(
    ("pool", "size"),
    [("QLinearAveragePool <kernel_shape=[2,2], strides=[2,2]>", 4), ("QLinearGlobalAveragePool", 1)],
)
def test_integer_pools_of_onnx_runtime_do_not_hide_the_shapes_behind_them(pool, size):
    layers = onnx_cost(integer_pool(pool)).layers
    assert [(layer.macs, layer.output_shape) for layer in layers] == [
        (9 * 64, (3, 8, 8)),
        (9 * size**2, (3, size, size)),
    ]


def test_a_shape_that_the_graph_computes_is_known():
    body = "n = Shape (x) b = Slice (n, i, j) c = Concat <axis=0> (b, k) r = Reshape (x, c) y = MatMul (r, w)"
    stored = [zeros("float", 192, 5, name="w"), "int64[1] i = {0}, int64[1] j = {1}, int64[1] k = {192}"]
    assert only_layer(model_of(body, ", ".join(stored))) == LayerCost("y", 960, 960, (5,))


def test_a_product_of_rows_uses_its_weights_for_each_of_them():
    model = model_of("y = MatMul (x, w)", zeros("float", 6, 5, name="w"), inputs="float[N,7,6] x")
    assert only_layer(model) == LayerCost("y", 30, 30 * 7, (7, 5))


def test_a_node_behind_one_that_costs_nothing_is_counted():
    body = "a = Relu (x) c = Conv (a, w) y = Relu (c)"
    assert only_layer(model_of(body, zeros("float", 4, 3, 1, 1, name="w"))).name == "c"


def test_an_output_of_which_nothing_is_known_is_refused():
    body = "u = com.microsoft.Unknown (x) y = Conv (u, w)"
    with pytest.raises(ModelFileError) as caught:
        onnx_cost(model_of(body, zeros("float", 4, 3, 1, 1, name="w")))
    assert caught.value.subject == "y"


def test_a_computed_weight_is_refused():
    with pytest.raises(ModelFileError) as caught:
        onnx_cost(model_of("y = Conv (x, v)", inputs="float[N,3,8,8] x, float[4,3,1,1] v"))
    assert caught.value.subject == "y"


def test_an_open_image_size_is_refused():
    model = model_of("y = Conv (x, w)", zeros("float", 4, 3, 1, 1, name="w"), inputs="float[N,3,H,W] x")
    model.graph.node[0].name = "conv"
    with pytest.raises(ModelFileError) as caught:
        onnx_cost(model)
    assert caught.value.subject == "conv"


def test_counting_leaves_the_model_as_it_was():
    model = integer_pool()
    before = model.SerializeToString()
    onnx_cost(model)
    assert model.SerializeToString() == before


@pytest.mark.slow
@pytest.mark.parametrize("head", ["classifier", "multiscale"])
def test_an_exported_densenet_costs_what_its_numbers_say(head):
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=6, num_classes=5, bn_size=2)
    spec = dataclasses.replace(spec, head=head)
    exported = onnx_from_module(build_model(spec), spec.output_name, OnnxOptions(image_size=32))
    found, expected = onnx_cost(onnx_ir.to_proto(exported)), model_cost(spec, 32)
    assert {layer.name: layer for layer in found.layers} == {layer.name: layer for layer in expected.layers}
    assert {block.name: block.macs for block in found.blocks} == {block.name: block.macs for block in expected.blocks}


@pytest.mark.slow
def test_macs_of_a_file_are_those_that_running_it_shows(tiny_onnx, tmp_path):
    model = onnx.load(tiny_onnx)
    weighted = {node.output[0]: node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    exposed = tmp_path / "exposed.onnx"
    exposed.write_bytes(expose_values(model, set(weighted)).SerializeToString())
    with open_runner(exposed, "onnxruntime", "cpu") as runner:
        results = runner.run({"input": np.zeros((1, 3, 32, 32), np.float32)})
    uses = {name: weights[node.input[1]] * math.prod(results[name].shape[2:]) for name, node in weighted.items()}
    found = {layer.name: layer.macs for layer in onnx_cost(model).layers if layer.macs}
    assert found == {node.name: uses[name] for name, node in weighted.items()}

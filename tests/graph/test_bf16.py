"""BF16: weights and tensors are rounded as PyTorch rounds them, and Casts stand only where types meet."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from densenet_deploy.errors import ModelFileError, UnknownNameError
from densenet_deploy.graph.bf16 import to_bf16
from tests.graph.half_models import (
    BFLOAT16,
    FLOAT,
    casts,
    cosine,
    evaluate,
    graph_of,
    node_named,
    saved,
    types_of,
    useless_casts,
)
from tests.graph.passes.networks import ROUNDING, run

HEADER = '<ir_version: 10, opset_import: ["" : 22]>'
ENDS = {"inputs": "float[2,4,6,6] x", "outputs": "float[2,8,3,3] y"}
BLOCK = """
[conv] a = Conv<pads: ints = [1, 1, 1, 1]>(x, w, b)
[relu] r = Relu(a)
[concat] c = Concat<axis: int = 1>(x, r)
[norm] n = Mul(c, scale)
[pool] y = MaxPool<kernel_shape: ints = [2, 2], strides: ints = [2, 2]>(n)
"""


def _constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "scale": (8, 1, 1)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _block(header: str = HEADER) -> onnx.ModelProto:
    return graph_of(BLOCK, _constants(), header=header, **ENDS)


def _images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)


def _rounded(array: np.ndarray) -> np.ndarray:
    """What PyTorch makes of `array` in bfloat16, as float32."""
    return torch.from_numpy(array).bfloat16().float().numpy()


def _names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in to_bf16(model).model.graph.node if node.op_type != "Cast"]


def test_a_network_computes_nearly_the_same(network, tmp_path):
    """Measured 0.99995 and better, with every tensor rounded to BF16."""
    half = to_bf16(network.proto)
    assert (half.float_nodes, half.reasons) == ((), {})
    expected = run(network.proto, network.images)
    for name, array in evaluate(half.model, {network.proto.graph.input[0].name: network.images}).items():
        assert array.dtype == np.float32
        assert cosine(expected[name], array) >= 0.999
    assert saved(half.model, tmp_path) == half.model


def test_weights_and_tensors_are_bf16_behind_a_cast_at_each_end(network):
    half = to_bf16(network.proto).model
    ends = {value.name for value in (*half.graph.input, *half.graph.output)}
    assert {name for name, kind in types_of(half).items() if kind == FLOAT} == ends
    assert len(casts(half)) == len(ends)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_network_computes_nearly_the_same_with_some_nodes_in_fp32(network, every):
    names = _names(network.proto)[::every]
    half = to_bf16(network.proto, float_nodes=names)
    assert half.float_nodes == tuple(names)
    assert useless_casts(half.model) == []
    types = types_of(half.model)
    for node in half.model.graph.node:
        kinds = {types[name] for name in (*node.input, *node.output)} & {FLOAT, BFLOAT16}
        assert node.op_type == "Cast" or kinds <= {FLOAT if node.name in names else BFLOAT16}
    expected = run(network.proto, network.images)
    for name, array in evaluate(half.model, {network.proto.graph.input[0].name: network.images}).items():
        assert cosine(expected[name], array) >= 0.999


def test_with_every_node_in_fp32_nothing_changes(network):
    """But for rounding: lifting may choose another kernel of ONNX Runtime, as it does for AveragePool."""
    half = to_bf16(network.proto, float_nodes=_names(network.proto))
    assert casts(half.model) == []
    expected, found = run(network.proto, network.images), run(half.model, network.images)
    assert list(expected) == list(found)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=ROUNDING * np.abs(expected[name]).max())


def test_tensors_keep_their_names(network):
    inner = {name for node in network.proto.graph.node for name in node.output}
    relus = [name for name in _names(network.proto) if "relu" in name.lower()]
    for half in (to_bf16(network.proto), to_bf16(network.proto, float_nodes=relus)):
        assert inner <= {name for node in half.model.graph.node for name in node.output}


def test_weights_are_rounded_as_pytorch_rounds_them():
    half = to_bf16(_block()).model
    for tensor in half.graph.initializer:
        assert tensor.data_type == BFLOAT16
        stored = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        np.testing.assert_array_equal(stored, _rounded(_constants()[tensor.name]))


def test_a_block_computes_what_pytorch_computes_in_bfloat16():
    """Both round each tensor; sums taken in another order may land on the neighbouring BF16 number, 2⁻⁷ away."""
    x, w, b, scale = (torch.from_numpy(array).bfloat16() for array in (_images(), *_constants().values()))
    joined = torch.cat([x, functional.conv2d(x, w, b, padding=1).relu()], 1)
    expected = functional.max_pool2d(joined * scale, 2).float().numpy()
    (found,) = evaluate(to_bf16(_block()).model, {"x": _images()}).values()
    np.testing.assert_allclose(found, expected, rtol=2**-6, atol=2**-7)
    assert np.abs(found - evaluate(_block(), {"x": _images()})["y"]).max() > 1e-3


def test_a_tensor_read_in_two_types_is_cast_once():
    """The sum and the product read the Relu's BF16 as FP32; the Neg reads it as it is."""
    body = "[relu] a = Relu(x)  [neg] n = Neg(a)  [add] s = Add(a, a)  [mul] p = Mul(a, s)  [last] y = Sub(p, n)"
    model = graph_of(body, {}, "float[3] x", "float[3] y", HEADER)
    half = to_bf16(model, float_nodes=["add", "mul"])
    assert casts(half.model) == [("x", "x:bf16"), ("a", "a:fp32"), ("p", "p:bf16"), ("y:bf16", "y")]
    assert list(node_named(half.model, "neg").input) == ["a"]
    (found,) = evaluate(half.model, {"x": np.float32([-1, 2, 3])}).values()
    np.testing.assert_array_equal(found, np.float32([0, 10, 21]))


def test_a_weight_read_in_two_types_is_stored_in_both():
    model = graph_of("[one] a = Mul(x, w)  [two] y = Mul(a, w)", {"w": 1.001}, "float[1] x", "float[1] y", HEADER)
    half = to_bf16(model, float_nodes=["two"])
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32).item() for t in half.model.graph.initializer}
    assert stored == {"w": np.float32(1.001), "w:bf16": 1.0}
    assert (node_named(half.model, "one").input[1], node_named(half.model, "two").input[1]) == ("w:bf16", "w")


def test_a_weight_that_a_caller_may_replace_stays_float32():
    model = graph_of("y = Mul(x, w)", {"w": 1.001}, "float[1] x, float w", "float[1] y", HEADER)
    for keep_io in (True, False):
        half = to_bf16(model, keep_io=keep_io).model
        assert types_of(half)["w"] == FLOAT
        assert ("w", "w:bf16") in casts(half)


def test_an_output_that_is_read_inside_too_is_cast_at_the_end():
    model = graph_of("a = Relu(x)  y = Neg(a)", {}, "float[2] x", "float[2] a, float[2] y", HEADER)
    half = to_bf16(model)
    assert casts(half.model) == [("x", "x:bf16"), ("a:bf16", "a"), ("y:bf16", "y")]
    found = evaluate(half.model, {"x": np.float32([2, -2])})
    np.testing.assert_array_equal([found["a"], found["y"]], [[2, 0], [-2, 0]])


def test_an_operator_without_a_bf16_form_stays_in_fp32():
    model = graph_of("a = Relu(x)  [celu] b = Celu(a)  y = Neg(b)", {}, "float[2] x", "float[2] y", HEADER)
    half = to_bf16(model)
    assert half.reasons == {"celu": "Celu has no BF16 form in operator set 22"}
    assert useless_casts(half.model) == []


def test_operators_of_other_domains_stay_in_fp32():
    header = '<ir_version: 10, opset_import: ["" : 22, "com.microsoft" : 1]>'
    model = graph_of("a = Relu(x)  [own] y = com.microsoft.Gelu(a)", {}, "float[2] x", "float[2] y", header)
    assert to_bf16(model).reasons == {"own": "Gelu is no operator of ONNX itself"}


def test_types_that_attributes_set_stay():
    model = graph_of(
        "[cast] a = Cast<to: int = 1>(k)  y = Mul(a, x)", {}, "int32[2] k, float[2] x", "float[2] y", HEADER
    )
    half = to_bf16(model)
    assert half.reasons == {"cast": "the type of what Cast makes is not that of what it reads"}
    (found,) = evaluate(half.model, {"k": np.int32([2, 3]), "x": np.float32([4, 5])}).values()
    np.testing.assert_array_equal(found, [8, 15])


def test_a_node_with_graphs_of_its_own_reads_float32():
    body = """
    a = Relu(x)
    [if] b = If(c) <then_branch = yes () => (float[2] t) { t = Mul(a, w) },
                    else_branch = no () => (float[2] e) { e = Neg(a) }>
    y = Mul(b, w)
    """
    model = graph_of(body, {"w": 1.001}, "bool c, float[2] x", "float[2] y", HEADER)
    half = to_bf16(model)
    assert half.reasons == {"if": "If holds a graph of its own"}
    (found,) = evaluate(half.model, {"c": np.array(True), "x": np.float32([2, 3])}).values()
    np.testing.assert_array_equal(found, [2, 3])


@pytest.mark.parametrize("opset", [13, 17, 20, 22, 23])
def test_older_operator_sets_are_lifted_and_metadata_stays(opset):
    model = _block(f'<ir_version: 8, opset_import: ["" : {opset}]>')
    model.metadata_props.add(key="densenet_deploy.labels", value="cat\ndog")
    before = model.SerializeToString(deterministic=True)
    half = to_bf16(model, float_nodes=["relu"]).model
    assert [(entry.domain, entry.version) for entry in half.opset_import] == [("", max(opset, 22))]
    assert half.ir_version >= (10 if opset < 22 else 8)
    assert half.metadata_props == model.metadata_props
    assert model.SerializeToString(deterministic=True) == before


def test_inputs_and_outputs_can_be_bf16():
    half = to_bf16(_block(), keep_io=False).model
    types = types_of(half)
    assert (types["x"], types["y"]) == (BFLOAT16, BFLOAT16)
    assert casts(half) == []
    mixed = to_bf16(_block(), float_nodes=["conv", "pool"], keep_io=False).model
    assert types_of(mixed)["y"] == BFLOAT16
    assert useless_casts(mixed) == []


def test_a_name_that_no_node_has_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        to_bf16(_block(), float_nodes=["conf"])


def test_a_model_in_bf16_is_refused():
    with pytest.raises(ModelFileError, match="holds 16-bit floats already"):
        to_bf16(to_bf16(_block()).model)


def test_a_model_that_cannot_be_lifted_is_refused():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { y = Upsample(x) }'
    )
    with pytest.raises(ModelFileError, match="cannot be lifted from operator set 13 to 22"):
        to_bf16(model)

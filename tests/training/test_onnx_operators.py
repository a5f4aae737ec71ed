"""Operators in PyTorch: each against ONNX Runtime, rounding and its straight-through gradient, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from densenet_deploy.errors import ModelFileError
from densenet_deploy.training.graph_module import GraphModule
from densenet_deploy.training.onnx_operators import rounded

INPUTS = "float[2,4,6,6] x"
CONSTANTS = {
    "w": np.random.default_rng(0).standard_normal((4, 2, 3, 3), np.float32),
    "c": np.float32([0.5, 1, 1.5, 2]),
    "column": np.float32([0.5, -1, 1.5, 2]).reshape(4, 1, 1),
    "one": np.float32(0.75),
    "rows": np.random.default_rng(1).standard_normal((144, 3), np.float32),
    "axes": np.int64([2, 3]),
    "shape": np.int64([0, 4, -1]),
    "starts": np.int64([1, 0]),
    "ends": np.int64([2**63 - 1, -1]),
    "steps": np.int64([2, 1]),
    "sizes": np.int64([1, 3]),
    "sides": np.int64([0, 0, 1, 0, 0, 0, 2, 1]),
    "scale": np.float32(0.02),
    "zero": np.uint8(117),
}


def graph(body: str, opset: int = 20) -> onnx.ModelProto:
    """A graph that reads x and CONSTANTS and makes y."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({INPUTS}) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    read = {name for node in model.graph.node for name in node.input}
    stored = ((name, array) for name, array in CONSTANTS.items() if name in read)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in stored)
    return model


BODIES = [
    "y = Conv <group=2, pads=[1,0,0,2], strides=[2,1]> (x, w, c)",
    'y = Conv <group=2, auto_pad="SAME_LOWER", strides=[2,2]> (x, w)',
    'y = Conv <group=2, auto_pad="SAME_UPPER"> (x, w)',
    'y = Conv <group=2, auto_pad="VALID"> (x, w)',
    "y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0]> (x)",
    "y = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (x)",
    "y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)",
    "y = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> (x)",
    "y = BatchNormalization <epsilon=0.1> (x, c, c, c, c)",
    "y = GlobalMaxPool (x)",
    "y = ReduceMean <keepdims=0> (x, axes)",
    "y = ReduceMax (x, axes)",
    "y = Clip (x, one)",
    "y = Clip (x, , one)",
    "a = Max (x, column)  y = Min (a, one)",
    "a = Div (x, column)  b = Sub (a, one)  y = LeakyRelu <alpha=0.2> (b)",
    "y = Pad (x, sides, one)",
    'y = Pad <mode="reflect"> (x, sides)',
    "y = Slice (x, starts, ends, axes, steps)",
    "a, b = Split <axis=1> (x, sizes)  c1 = Mul (b, b)  y = Concat <axis=1> (c1, a)",
    "y = Reshape (x, shape)",
    "a = Flatten (x)  y = Gemm <alpha=0.5> (a, rows)",
    "a = Flatten (x)  b = MatMul (a, rows)  y = LogSoftmax <axis=1> (b)",
    "a = GlobalAveragePool (x)  b = Squeeze (a, axes)  y = Unsqueeze (b, axes)",
    "a = Transpose <perm=[0,2,3,1]> (x)  y = Tanh (a)",
    "a = Greater (x, one)  b = Sigmoid (x)  y = Where (a, b, x)",
    "a = Relu (x)  b = Sqrt (a)  y = Pow (b, one)",
    "a = Cast <to=2> (x)  y = Cast <to=1> (a)",
    "a = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (a, scale, zero)",
]


@pytest.mark.parametrize("body", BODIES)
def test_an_operator_computes_what_onnx_runtime_computes(body: str) -> None:
    model, images = graph(body), np.random.default_rng(2).standard_normal((2, 4, 6, 6), np.float32)
    images = np.abs(images) if "Cast" in body else images
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": images})
    with torch.no_grad():
        found = GraphModule(model)(torch.from_numpy(images))["y"].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body", ["y = Softmax <axis=1> (x)", "a = Slice <starts=[1], ends=[3], axes=[2]> (x)  y = Relu (a)"]
)
def test_older_operator_sets(body: str) -> None:
    model = graph(body, opset=9)
    images = np.random.default_rng(2).standard_normal((2, 4, 6, 6), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        found = GraphModule(model)(torch.from_numpy(images))["y"].numpy()
    np.testing.assert_allclose(found, session.run(None, {"x": images})[0], rtol=1e-5, atol=1e-6)


def test_rounding_sends_ties_to_even_and_passes_the_gradient_between_the_limits() -> None:
    values = torch.tensor([-2.0, -1.5, -0.5, 0.5, 1.5, 2.4, 2.5, 2.6, 3.5, 9.0], requires_grad=True)
    found = rounded(values, -1, 3)
    assert found.tolist() == [-1, -1, 0, 0, 2, 2, 2, 3, 3, 3]
    found.backward(torch.arange(1.0, 11.0))
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 8, 0, 0]  # −1.5 and 3.5 round beyond the limits


def test_the_gradient_of_a_quantizer_is_one_inside_of_its_range() -> None:
    """Q and DQ with scale 0.02 around 117: −2.34 to 2.76."""
    model = graph("a = Mul (x, one)  b = QuantizeLinear (a, scale, zero)  y = DequantizeLinear (b, scale, zero)")
    images = torch.zeros(1, 4, 6, 6)
    images.view(-1)[:6] = torch.tensor([-2.36, -2.34, 0.31, 2.76, 2.78, 100.0]) / 0.75
    images.requires_grad_()
    GraphModule(model)(images)["y"].sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad.view(-1)[:6], 0.75 * torch.tensor([0.0, 1, 1, 1, 0, 0]))


def test_the_gradient_of_a_clip_goes_to_the_value_or_to_the_bound() -> None:
    module = GraphModule(graph("y = Max (x, column)"), ["column"])
    images = torch.full((1, 4, 6, 6), 1.5, requires_grad=True)
    module(images)["y"].sum().backward()
    assert images.grad is not None
    assert images.grad[0, :, 0, 0].tolist() == [1, 1, 1, 0]  # the third is the bound itself
    assert module.initializer("column").grad.flatten().tolist() == [0, 0, 0, 36]  # type: ignore[union-attr]


def test_a_scale_gets_a_gradient_too() -> None:
    """d/ds of s·round(x/s) is round(x/s) − x/s inside of the range (LSQ), and the last value beyond it."""
    body = "b = QuantizeLinear (x, scale, zero)  y = DequantizeLinear (b, scale, zero)"
    module = GraphModule(graph(body), ["scale"])
    module(torch.full((1, 1, 1, 1), 0.031))["y"].sum().backward()
    assert module.initializer("scale").grad.item() == pytest.approx(2 - 1.55, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body",
    [
        "y = AveragePool <kernel_shape=[3,3], pads=[1,1,0,0]> (x)",
        'y = Pad <mode="edge"> (x, sides)',
        "a = Cast <to=7> (x)  y = Cast <to=1> (a)",
    ],
)
def test_what_is_not_run_names_the_node(body: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        GraphModule(graph(body))(torch.zeros(2, 4, 6, 6))
    assert caught.value.subject in ("the node y", "the node a")

"""Random networks of the parts that people put into a DenseNet, as their files hold them: gates, skips, any activation.

Every norm gets the statistics of its own input, as training leaves them: with numbers out of the air, most channels
would be constant, and quantization would have nothing to lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from densenet_deploy.graph.onnx_file import expose_values

INPUT_RANGES = {"normalized": (-2.1, 2.6), "pixels": (0.0, 255.0), "hounsfield": (-1024.0, 1024.0), "unit": (0.0, 1.0)}
ACTIVATIONS = ("relu", "relu", "leaky", "prelu", "silu", "hardswish")
HEADS = ("gemm", "matmul", "stack", "two", "conv", "maps", "features")
GATES = ("none", "none", "conv", "gemm", "hard")
PLACES = ("layer", "transition", "block", "layer, transition, block")
BODIES = ("dense", "dense", "dense", "reread", "unordered", "chain")
_OPSET = 17


@dataclass(frozen=True)
class Choices:
    """What a network is drawn from; all numbers of the network follow from `seed`."""

    seed: int
    channels: int
    height: int
    width: int
    input_range: str
    activation: str
    head: str
    gate: str
    gate_place: str
    skip: bool
    mixing: str
    layers: int
    body: str = "dense"

    def inputs(self, count: int, seed: int) -> np.ndarray:
        """Images with structure, each of its own brightness and contrast: (count, C, H, W) float32."""
        rng = np.random.default_rng([self.seed, seed])
        coarse = rng.uniform(0, 1, (count, self.channels, 4, 4))
        rows, columns = (np.arange(size) * 4 // size for size in (self.height, self.width))
        fine = rng.uniform(0, 1, (count, self.channels, self.height, self.width))
        mixed = 0.7 * coarse[:, :, rows][:, :, :, columns] + 0.3 * fine
        contrast, brightness = rng.uniform(0.3, 1, (count, 1, 1, 1)), rng.uniform(0, 1, (count, 1, 1, 1))
        low, high = INPUT_RANGES[self.input_range]
        return (low + (high - low) * (contrast * mixed + (1 - contrast) * brightness)).astype(np.float32)


CHOICES = st.builds(
    Choices,
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from((1, 3, 3, 4)),
    height=st.sampled_from((12, 16, 20)),
    width=st.sampled_from((12, 16, 24)),
    input_range=st.sampled_from(tuple(INPUT_RANGES)),
    activation=st.sampled_from(ACTIVATIONS),
    head=st.sampled_from(HEADS),
    gate=st.sampled_from(GATES),
    gate_place=st.sampled_from(PLACES),
    skip=st.booleans(),
    mixing=st.sampled_from(("plain", "plain", "depthwise", "grouped")),
    layers=st.integers(1, 3),
    body=st.sampled_from(BODIES),
)


def network_of(choices: Choices) -> onnx.ModelProto:
    """The network, checked, with shapes."""
    return _Builder(choices).build()


@dataclass(frozen=True)
class _Map:
    name: str
    channels: int


@dataclass
class _Builder:
    choices: Choices
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    norms: list[onnx.NodeProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.choices.seed)

    def build(self) -> onnx.ModelProto:
        choices, tensor = self.choices, _Map("input", self.choices.channels)
        low, high = INPUT_RANGES[choices.input_range]
        tensor = self._conv(tensor, 8, 3, stride=2, gain=2 / (high - low))
        tensor = self._activated(self._norm(tensor))
        if self.rng.random() < 0.3:
            tensor = self._pool("MaxPool", tensor, 3, 1)
        first = self._block(tensor)
        tensor = self._transition(first)
        if choices.skip:
            tensor = self._residual(tensor)
        second = self._block(tensor)
        tensor = self._activated(self._norm(second))
        self._head(tensor)
        if choices.head == "features":
            self.outputs += [first.name, second.name]
        return self._with_statistics(self._model())

    # -- parts

    def _block(self, tensor: _Map) -> _Map:
        """A block of the kind `body`; what all of its layers read is one tensor after the other, joined."""
        parts = [tensor]
        for _ in range(self.choices.layers):
            inner = self._layer(tensor)
            parts.append(inner)
            if self.choices.body == "chain":
                tensor = inner
            elif self.choices.body == "unordered":
                tensor = self._concat(parts[::-1] if len(parts) % 2 else parts)
            else:
                tensor = self._concat([tensor, inner])
        if self.choices.body == "reread":
            tensor = self._activated(self._conv(self._activated(tensor), 12, 3))
        return self._gated(tensor) if "block" in self.choices.gate_place else tensor

    def _layer(self, tensor: _Map) -> _Map:
        inner = self._activated(self._norm(tensor))
        inner = self._conv(inner, 12, 1)
        inner = self._activated(self._norm(inner))
        inner = self._mixed(inner, 6)
        return self._gated(inner) if "layer" in self.choices.gate_place else inner

    def _concat(self, parts: Sequence[_Map]) -> _Map:
        return self._node("Concat", [part.name for part in parts], sum(part.channels for part in parts), axis=1)

    def _transition(self, tensor: _Map) -> _Map:
        tensor = self._activated(self._norm(tensor))
        tensor = self._pool("AveragePool", self._conv(tensor, 10, 1), 2, 2)
        return self._gated(tensor) if "transition" in self.choices.gate_place else tensor

    def _pool(self, op_type: str, tensor: _Map, kernel: int, stride: int) -> _Map:
        pads = [kernel - 2] * 4
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self._node(op_type, [tensor.name], tensor.channels, **attributes)

    def _residual(self, tensor: _Map) -> _Map:
        inner = self._activated(self._norm(self._conv(tensor, tensor.channels, 3)))
        inner = self._norm(self._mixed(inner, tensor.channels))
        added = self._node("Add", [inner.name, tensor.name], tensor.channels)
        return self._activated(added) if self.rng.random() < 0.5 else added

    def _mixed(self, tensor: _Map, channels: int) -> _Map:
        if self.choices.mixing == "depthwise":
            return self._conv(self._conv(tensor, tensor.channels, 3, group=tensor.channels), channels, 1)
        return self._conv(tensor, channels, 3, group=2 if self.choices.mixing == "grouped" else 1)

    def _gated(self, tensor: _Map) -> _Map:
        kind, few = self.choices.gate, max(2, tensor.channels // 3)
        if kind == "none":
            return tensor
        pooled = self._node("GlobalAveragePool", [tensor.name], tensor.channels)
        if kind == "gemm":
            rows = self._node("Flatten", [pooled.name], tensor.channels)
            rows = self._node("Relu", [self._gemm(rows, few).name], few)
            rows = self._node("Sigmoid", [self._gemm(rows, tensor.channels).name], tensor.channels)
            shape = self._constant("shape", np.array([-1, tensor.channels, 1, 1], np.int64))
            scores = self._node("Reshape", [rows.name, shape], tensor.channels)
        else:
            scores = self._node("Relu", [self._conv(pooled, few, 1, has_bias=True).name], few)
            scores = self._conv(scores, tensor.channels, 1, has_bias=True)
            scores = self._node("HardSigmoid" if kind == "hard" else "Sigmoid", [scores.name], tensor.channels)
        return self._node("Mul", [tensor.name, scores.name], tensor.channels)

    def _head(self, tensor: _Map) -> None:
        kind = self.choices.head
        if kind == "maps":
            self.outputs = [self._conv(tensor, 3, 1, has_bias=True).name]
            return
        pooled = self._node("GlobalAveragePool", [tensor.name], tensor.channels)
        if kind == "conv":
            self.outputs = [self._conv(pooled, 5, 1, has_bias=True).name]
            return
        rows = self._node("Flatten", [pooled.name], tensor.channels)
        if kind == "matmul":
            weight = self._random("fc", (rows.channels, 5), rows.channels**-0.5)
            product = self._node("MatMul", [rows.name, weight], 5)
            self.outputs = [self._node("Add", [product.name, self._random("fb", (5,))], 5).name]
        elif kind == "stack":
            hidden = self._node("Relu", [self._gemm(rows, 16).name], 16)
            self.outputs = [self._gemm(hidden, 5).name]
        elif kind == "two":
            self.outputs = [self._gemm(rows, 5).name, self._node("Sigmoid", [self._gemm(rows, 3).name], 3).name]
        else:
            self.outputs = [self._gemm(rows, 5).name]

    def _activated(self, tensor: _Map) -> _Map:
        kind = self.choices.activation
        if kind == "relu":
            return self._node("Relu", [tensor.name], tensor.channels)
        if kind == "leaky":
            return self._node("LeakyRelu", [tensor.name], tensor.channels, alpha=0.1)
        if kind == "prelu":
            slopes = self._constant("slope", self.rng.uniform(0.05, 0.4, (tensor.channels, 1, 1)).astype(np.float32))
            return self._node("PRelu", [tensor.name, slopes], tensor.channels)
        if kind == "hardswish":
            return self._node("HardSwish", [tensor.name], tensor.channels)
        gate = self._node("Sigmoid", [tensor.name], tensor.channels)
        return self._node("Mul", [tensor.name, gate.name], tensor.channels)

    def _conv(
        self, tensor: _Map, channels: int, kernel: int, *, stride: int = 1, group: int = 1, gain: float = 1.0,
        has_bias: bool = False,
    ) -> _Map:  # fmt: skip
        shape = (channels, tensor.channels // group, kernel, kernel)
        size = gain * (2 / np.prod(shape[1:])) ** 0.5
        spread = np.exp(self.rng.normal(0, 0.5, (channels, 1, 1, 1)))  # rows of trained networks differ
        weight = self._constant("w", (self.rng.standard_normal(shape) * size * spread).astype(np.float32))
        inputs = [tensor.name, weight]
        if has_bias or self.rng.random() < 0.3:
            inputs.append(self._random("b", (channels,), 0.3))
        pad, sizes = kernel // 2, [kernel, kernel]
        return self._node(
            "Conv", inputs, channels, kernel_shape=sizes, pads=[pad] * 4, strides=[stride] * 2, group=group
        )

    def _norm(self, tensor: _Map) -> _Map:
        gamma = self.rng.uniform(0.4, 1.6, tensor.channels).astype(np.float32)
        numbers = [self._constant("gamma", gamma), self._random("beta", (tensor.channels,), 0.4)]
        numbers += [self._constant("mean", np.zeros_like(gamma)), self._constant("var", np.ones_like(gamma))]
        made = self._node("BatchNormalization", [tensor.name, *numbers], tensor.channels)
        self.norms.append(self.nodes[-1])
        return made

    def _gemm(self, rows: _Map, channels: int) -> _Map:
        weight = self._random("fc", (channels, rows.channels), 2 * rows.channels**-0.5)
        return self._node("Gemm", [rows.name, weight, self._random("fb", (channels,), 0.3)], channels, transB=1)

    # -- nodes and numbers

    def _node(self, op_type: str, inputs: Sequence[str], channels: int, **attributes: object) -> _Map:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return _Map(name, channels)

    def _random(self, stem: str, shape: tuple[int, ...], spread: float = 1.0) -> str:
        return self._constant(stem, (self.rng.standard_normal(shape) * spread).astype(np.float32))

    def _constant(self, stem: str, array: np.ndarray) -> str:
        name = f"{stem}{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _model(self) -> onnx.ModelProto:
        choices = self.choices
        names = {made: f"out{place}" for place, made in enumerate(self.outputs)}
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        fed = helper.make_tensor_value_info(
            "input", TensorProto.FLOAT, ["N", choices.channels, choices.height, choices.width]
        )
        outputs = [helper.make_empty_tensor_value_info(f"out{place}") for place in range(len(self.outputs))]
        graph = helper.make_graph(self.nodes, "g", [fed], outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)

    def _with_statistics(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Give every norm the mean and variance of its input, one after the other."""
        samples = self.choices.inputs(32, seed=0)
        for norm in self.norms:
            found = opened(expose_values(model, {norm.input[0]})).run([norm.input[0]], {"input": samples})[0]
            for index, numbers in ((3, found.mean((0, 2, 3))), (4, found.var((0, 2, 3)))):
                tensor = next(each for each in model.graph.initializer if each.name == norm.input[index])
                tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


def opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model, ready to run on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

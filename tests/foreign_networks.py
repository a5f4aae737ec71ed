"""Small DenseNets as other exporters write them: the same network in many encodings, with seeded weights.

`written(Encoding(...))` gives the file, and `plain(Encoding(...))` the same network with nodes in order and weights as
initializers, which ONNX Runtime runs as the reference.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NORMS: Final = ("batchnorm", "caffe", "mul-add", "sub-div-mul-add")
HEADS: Final = ("gemm", "matmul", "matmul-add", "conv", "view", "reshape", "squeeze", "avgpool")
WEIGHTS: Final = ("initializers", "inputs", "constants", "computed")
ENDINGS: Final = ("none", "Sigmoid", "Softmax")
LAYERS: Final = 2
BLOCKS: Final = 2
CONVOLUTIONS: Final = 1 + BLOCKS * LAYERS * 2 + BLOCKS - 1
"""Without that of a head."""

_SIZE: Final = 16
_CLASSES: Final = 5
_FEATURES: Final = 8
_GROWTH: Final = 4
_AXES_ARE_INPUTS: Final = 13
_PADS_ARE_INPUTS: Final = 11


@dataclass(frozen=True)
class Encoding:
    """How one network is written.

    Attributes:
        norm: of `NORMS`; `head`, `weights` and `ending` likewise.
        leading: steps before the stem, (operator, number or (C,) numbers, whether the number comes first).
        flat: whether every Concat of a block lists all tensors before it.
        pads: whether zero padding stands as a Pad before the pools, as PyTorch 1.0 wrote it.
        shuffled: whether nodes are out of order.
        names: `own`, `same` for all nodes, or `none`.
        layout: of the input.
    """

    opset: int = 13
    norm: str = "batchnorm"
    head: str = "gemm"
    weights: str = "initializers"
    ending: str = "none"
    leading: tuple[tuple[str, object, bool], ...] = ()
    flat: bool = True
    pads: bool = False
    shuffled: bool = False
    names: str = "own"
    layout: str = "NCHW"
    channels: int = 3
    bias_as_add: bool = False
    batch: int | str = "N"
    seed: int = 0

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        sizes = (_SIZE, _SIZE, self.channels) if self.layout == "NHWC" else (self.channels, _SIZE, _SIZE)
        return (self.batch, *sizes)


def written(encoding: Encoding) -> onnx.ModelProto:
    """Return the network as `encoding` says."""
    return _Writer(encoding).model()


def plain(encoding: Encoding) -> onnx.ModelProto:
    """Return the same network with nodes in order and weights as initializers."""
    return written(dataclasses.replace(encoding, shuffled=False, names="own", weights="initializers"))


def image(encoding: Encoding, count: int = 2) -> np.ndarray:
    """Return seeded images in the layout of the file, of values in 0..1."""
    shape = (count, *(int(size) for size in encoding.input_shape[1:]))
    return np.random.default_rng(encoding.seed + 1).uniform(0, 1, shape).astype(np.float32)


class _Writer:
    def __init__(self, encoding: Encoding) -> None:
        self._how, self._rng = encoding, np.random.default_rng(encoding.seed)
        self._nodes: list[onnx.NodeProto] = []
        self._stored: dict[str, np.ndarray] = {}
        self._count = 0

    def model(self) -> onnx.ModelProto:
        how = self._how
        value = self._leading("image")
        if how.layout == "NHWC":
            value = self._node("Transpose", [value], perm=[0, 3, 1, 2])
        value = self._conv(value, _FEATURES, how.channels, 3, 1)
        value, channels = self._node("Relu", [self._norm(value, _FEATURES)]), _FEATURES
        value = self._node("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        for block in range(BLOCKS):
            value, channels = self._block(value, channels)
            if block < BLOCKS - 1:
                value, channels = self._transition(value, channels)
        value = self._node("Relu", [self._norm(value, channels)])
        value = self._head(value, channels)
        if how.ending == "Softmax":
            value = self._node("Softmax", [value], axis=1)
        elif how.ending != "none":
            value = self._node(how.ending, [value])
        self._nodes[-1].output[0] = "scores"
        return self._file()

    # -- the network

    def _block(self, value: str, channels: int) -> tuple[str, int]:
        parts, joined = [value], value
        for _ in range(LAYERS):
            made = self._node("Relu", [self._norm(joined, channels)])
            made = self._conv(made, 2 * _GROWTH, channels, 1, 0)
            made = self._node("Relu", [self._norm(made, 2 * _GROWTH)])
            made = self._conv(made, _GROWTH, 2 * _GROWTH, 3, 1)
            parts, channels = [*parts, made], channels + _GROWTH
            joined = self._node("Concat", parts if self._how.flat else [joined, made], axis=1)
        return joined, channels

    def _transition(self, value: str, channels: int) -> tuple[str, int]:
        value = self._node("Relu", [self._norm(value, channels)])
        value = self._conv(value, channels // 2, channels, 1, 0)
        if self._how.pads:
            value = self._pad(value)
        return self._node("AveragePool", [value], kernel_shape=[2, 2], strides=[2, 2]), channels // 2

    def _pad(self, value: str) -> str:
        if self._how.opset < _PADS_ARE_INPUTS:
            return self._node("Pad", [value], pads=[0] * 8)
        return self._node("Pad", [value, self._integers([0] * 8)])

    def _conv(self, value: str, outputs: int, inputs: int, kernel: int, pad: int) -> str:
        weight = self._weight(self._rng.normal(0, (2 / (inputs * kernel**2)) ** 0.5, (outputs, inputs, kernel, kernel)))
        made = self._node("Conv", [value, weight], kernel_shape=[kernel, kernel], pads=[pad] * 4)
        if not self._how.bias_as_add:
            return made
        return self._node("Add", [made, self._weight(self._rng.normal(0, 0.1, (outputs, 1, 1)))])

    def _norm(self, value: str, channels: int) -> str:
        gamma, shift = self._rng.uniform(0.5, 1.5, channels), self._rng.normal(0, 0.2, channels)
        mean, variance = self._rng.normal(0, 0.2, channels), self._rng.uniform(0.5, 1.5, channels)
        if self._how.norm == "batchnorm":
            return self._batch_norm(value, gamma, shift, mean, variance)
        if self._how.norm == "caffe":
            ones, zeros = np.ones(channels), np.zeros(channels)
            value = self._batch_norm(value, ones, zeros, mean, variance)
            return self._per_channel("Add", self._per_channel("Mul", value, gamma), shift)
        if self._how.norm == "mul-add":
            scale = gamma / np.sqrt(variance)
            return self._per_channel("Add", self._per_channel("Mul", value, scale), shift - mean * scale)
        value = self._per_channel("Div", self._per_channel("Sub", value, mean), np.sqrt(variance))
        return self._per_channel("Add", self._per_channel("Mul", value, gamma), shift)

    def _batch_norm(self, value: str, *numbers: np.ndarray) -> str:
        return self._node("BatchNormalization", [value, *map(self._weight, numbers)], epsilon=1e-5)

    def _per_channel(self, op_type: str, value: str, numbers: np.ndarray) -> str:
        """Write the numbers as (C,), which a node unsqueezes, as Caffe2's converter does."""
        stored = self._weight(numbers)
        if self._how.opset < _AXES_ARE_INPUTS:
            column = self._node("Unsqueeze", [stored], axes=[1, 2])
        else:
            column = self._node("Unsqueeze", [stored, self._integers([1, 2])])
        return self._node(op_type, [value, column])

    def _leading(self, value: str) -> str:
        for op_type, numbers, is_first in self._how.leading:
            array = np.asarray(numbers, np.float32)
            if array.ndim and self._how.layout == "NCHW":
                array = array.reshape(-1, 1, 1)
            inputs = [value, self._weight(array)]
            value = self._node(op_type, inputs[::-1] if is_first else inputs)
        return value

    def _head(self, value: str, channels: int) -> str:
        weight = self._rng.normal(0, 1, (channels, _CLASSES))
        bias, head, size = self._rng.normal(0, 1, _CLASSES), self._how.head, _SIZE // 4
        if head in ("view", "avgpool"):
            pooled = self._node("AveragePool", [value], kernel_shape=[size, size])
        else:
            pooled = self._node("GlobalAveragePool", [value])
        if head == "conv":
            kernel = weight.T.reshape(_CLASSES, channels, 1, 1)
            return self._node("Conv", [pooled, self._weight(kernel), self._weight(bias)], kernel_shape=[1, 1])
        rows = self._rows(pooled, value, channels)
        if head == "matmul":
            return self._node("MatMul", [rows, self._weight(weight)])
        if head == "matmul-add":
            return self._node("Add", [self._node("MatMul", [rows, self._weight(weight)]), self._weight(bias)])
        return self._node("Gemm", [rows, self._weight(weight.T), self._weight(bias)], transB=1)

    def _rows(self, pooled: str, features: str, channels: int) -> str:
        head, is_old = self._how.head, self._how.opset < _AXES_ARE_INPUTS
        if head == "squeeze":
            if is_old:
                return self._node("Squeeze", [pooled], axes=[2, 3])
            return self._node("Squeeze", [pooled, self._integers([2, 3])])
        if head == "reshape":
            return self._node("Reshape", [pooled, self._integers([-1, channels])])
        if head != "view":
            return self._node("Flatten", [pooled], axis=1)
        batch = self._node("Gather", [self._node("Shape", [features]), self._integers(0)], axis=0)
        if is_old:
            batch = self._node("Unsqueeze", [batch], axes=[0])
        else:
            batch = self._node("Unsqueeze", [batch, self._integers([0])])
        return self._node("Reshape", [pooled, self._node("Concat", [batch, self._integers([-1])], axis=0)])

    # -- the file

    def _node(self, op_type: str, inputs: list[str], **attributes: object) -> str:
        self._count += 1
        name = {"own": f"{op_type}_{self._count}", "same": "node", "none": ""}[self._how.names]
        self._nodes.append(helper.make_node(op_type, inputs, [f"v{self._count}"], name, **attributes))
        return f"v{self._count}"

    def _weight(self, array: np.ndarray) -> str:
        name = f"w{len(self._stored)}"
        self._stored[name] = np.asarray(array, np.float32)
        return name

    def _integers(self, numbers: object) -> str:
        name = f"w{len(self._stored)}"
        self._stored[name] = np.asarray(numbers, np.int64)
        return name

    def _file(self) -> onnx.ModelProto:
        how, nodes, tensors = self._how, list(self._nodes), []
        inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, how.input_shape)]
        for name, array in self._stored.items():
            if how.weights == "constants":
                nodes.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            elif how.weights == "computed" and array.ndim == 4:  # stored transposed, with a scale of 1/2
                tensors.append(numpy_helper.from_array(2 * array.transpose(1, 0, 2, 3), f"{name}_t"))
                tensors.append(numpy_helper.from_array(np.float32(0.5), f"{name}_s"))
                turned = helper.make_node("Transpose", [f"{name}_t"], [f"{name}_r"], perm=[1, 0, 2, 3])
                nodes[:0] = [turned, helper.make_node("Mul", [f"{name}_r", f"{name}_s"], [name])]
            else:
                tensors.append(numpy_helper.from_array(array, name))
            if how.weights == "inputs":
                kind = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
                inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        if how.shuffled:
            nodes = [nodes[place] for place in np.random.default_rng(how.seed).permutation(len(nodes))]
        pixel = (1, 1) if how.head == "conv" else ()
        outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (how.batch, _CLASSES, *pixel))]
        graph = helper.make_graph(nodes, "foreign", inputs, outputs, tensors)
        version = 3 if how.weights == "inputs" and how.opset < 9 else helper.find_min_ir_version_for(
            [helper.make_opsetid("", how.opset)]
        )  # fmt: skip
        version = version if how.weights == "inputs" else max(version, 4)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", how.opset)], ir_version=version)

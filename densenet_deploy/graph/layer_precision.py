"""In which precision each layer of an ONNX graph computes, as the graph says, on any backend.

Integer operators compute on integers, and so does a layer that reads both its data and its weights through
DequantizeLinear: backends fuse those. A layer with only its weights quantized computes in float on restored numbers.
All others compute in the type of their weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx

_INTEGER: Final = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm")
_FLOAT: Final = ("Conv", "Gemm", "MatMul")
_KEEPING: Final = ("Identity", "Transpose")
# TensorProto.DataType
_TYPES: Final = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}


@dataclass(frozen=True)
class LayerPrecision:
    """A node (without a name: its first output), and what it computes in: fp32, fp16, bf16, int8 or unknown."""

    name: str
    operator: str
    precision: str


def layer_precisions(model: onnx.ModelProto) -> tuple[LayerPrecision, ...]:
    """Return the precision of every convolution and matrix product of `model`, in the order of its nodes."""
    return tuple(_layers(model))


def _layers(model: onnx.ModelProto) -> Iterator[LayerPrecision]:
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        name = node.name or node.output[0]
        if node.op_type in _INTEGER:
            yield LayerPrecision(name, node.op_type, "int8")
        elif node.op_type in _FLOAT:
            yield LayerPrecision(name, node.op_type, _float_layer(node, makers, stored))


def _float_layer(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], stored: dict[str, int]) -> str:
    data, weight = (makers.get(name) for name in node.input[:2])
    if _dequantizes(data) and _dequantizes(weight):
        return "int8"
    return _TYPES.get(_type_of(node.input[1], makers, stored), "unknown")


def _dequantizes(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _type_of(value: str, makers: dict[str, onnx.NodeProto], stored: dict[str, int]) -> int:
    """The element type of a weight: its own, that of its scale if it is dequantized, or of a cast; else 0."""
    while (maker := makers.get(value)) is not None:
        if maker.op_type == "Cast":
            return next(int(attribute.i) for attribute in maker.attribute if attribute.name == "to")
        if maker.op_type not in (*_KEEPING, "DequantizeLinear"):
            return 0
        value = maker.input[1 if maker.op_type == "DequantizeLinear" else 0]
    return stored.get(value, 0)

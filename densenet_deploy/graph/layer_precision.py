"""In which precision each layer of an ONNX graph computes, as the graph says, on any backend.

Integer operators compute on integers, and so does a layer that reads both its data and its weights through
DequantizeLinear: backends fuse those. A layer with only its weights quantized computes in float on restored numbers.
All others compute in the type of their weights. Layers inside branches, loops and functions count like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx

_INTEGER: Final = frozenset(
    {
        *("QLinearConv", "QLinearConvTranspose", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)
_FLOAT: Final = frozenset(
    {
        *("Conv", "ConvTranspose", "DeformConv", "FusedConv", "NhwcConv", "NhwcFusedConv"),
        *("Gemm", "MatMul", "FusedGemm", "FusedMatMul"),
    }
)
_KEEPING: Final = ("Identity", "Transpose")
# TensorProto.DataType
_TYPES: Final = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}


@dataclass(frozen=True)
class LayerPrecision:
    """A node (without a name: its first output), and what it computes in: fp32, fp16, bf16, int8 or unknown."""

    name: str
    operator: str
    precision: str

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, of whatever operator."""
        return "Conv" in self.operator


def layer_precisions(model: onnx.ModelProto) -> tuple[LayerPrecision, ...]:
    """Return the precision of every convolution and matrix product of `model`, in the order of its nodes."""
    return (
        *_layers(model.graph, _Scope.of(model.graph)),
        *(layer for function in model.functions for layer in _layers(function, _Scope.of(function))),
    )


@dataclass(frozen=True)
class _Scope:
    """The makers of values and the types of stored ones that nodes of a graph see: its own, and those around it."""

    makers: Mapping[str, onnx.NodeProto]
    stored: Mapping[str, int]

    @classmethod
    def of(cls, graph: onnx.GraphProto | onnx.FunctionProto, around: _Scope | None = None) -> _Scope:
        makers = {output: node for node in graph.node for output in node.output}
        stored = {tensor.name: tensor.data_type for tensor in getattr(graph, "initializer", ())}
        return cls(makers, stored) if around is None else cls({**around.makers, **makers}, {**around.stored, **stored})


def _layers(graph: onnx.GraphProto | onnx.FunctionProto, scope: _Scope) -> Iterator[LayerPrecision]:
    for node in graph.node:
        name = node.name or node.output[0]
        if node.op_type in _INTEGER:
            yield LayerPrecision(name, node.op_type, "int8")
        elif node.op_type in _FLOAT:
            yield LayerPrecision(name, node.op_type, _float_layer(node, scope))
        for attribute in node.attribute:
            inner = (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)
            yield from (layer for branch in inner for layer in _layers(branch, _Scope.of(branch, scope)))


def _float_layer(node: onnx.NodeProto, scope: _Scope) -> str:
    data, weight = (scope.makers.get(name) for name in node.input[:2])
    if _dequantizes(data) and _dequantizes(weight):
        return "int8"
    return _TYPES.get(_type_of(node.input[1], scope), "unknown")


def _dequantizes(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _type_of(value: str, scope: _Scope) -> int:
    """The element type of a weight: its own, that of its scale if it is dequantized, or of a cast; else 0."""
    while (maker := scope.makers.get(value)) is not None:
        if maker.op_type == "Cast":
            return next(int(attribute.i) for attribute in maker.attribute if attribute.name == "to")
        if maker.op_type == "Constant":
            return next((int(attribute.t.data_type) for attribute in maker.attribute if attribute.name == "value"), 0)
        if maker.op_type not in (*_KEEPING, "DequantizeLinear"):
            return 0
        value = maker.input[1 if maker.op_type == "DequantizeLinear" else 0]
    return scope.stored.get(value, 0)

"""Turn a float32 graph, with or without Q/DQ nodes, into one that computes in float16 and still speaks float32.

TensorRT builds strongly typed networks: what is half in the file is half on the device. So every stored number becomes
float16, a Cast behind each input and one before each output keep the graph's outside float32, and since the type of a
DequantizeLinear's output is that of its scale (from opset 19 on), float16 scales leave no float32 between them.

Two kinds of numbers do not survive a plain cast. A variance of 1e-9 would be 0: the numbers of a norm are first merged
into one scale and one shift, in float64. A quantization scale below 2⁻²⁰ would lose its digits, or be 0: choose scales
with `half_at_least` before codes are computed, and the cast is exact.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.graph_pass import is_operator, new_initializer
from densenet_deploy.graph.norms import scale_and_shift, why_no_affine

OLDEST_OPSET: Final = 19
"""The first opset whose QuantizeLinear and DequantizeLinear take float16 scales."""

_IR_OF_OPSET_19: Final = 9
_SMALLEST_SCALE: Final = 2.0**-20  # 16 steps above the smallest subnormal: rounding it up costs at most 6 %
_KEPT_FLOAT: Final = (("Resize", 2), ("Upsample", 1))  # inputs that ONNX wants in float32 whatever the data are
_TYPE_ATTRIBUTES: Final = ("to", "dtype", "output_dtype")


def half_at_least(numbers: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return float32 numbers that float16 holds exactly, none below `numbers`, which are not negative, nor below 2⁻²⁰.

    Beyond the largest float16, 65504, that is infinity.
    """
    wanted = np.maximum(np.asarray(numbers, np.float64), _SMALLEST_SCALE)
    with np.errstate(over="ignore"):
        nearest = wanted.astype(np.float16)
    above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest < wanted, above, nearest).astype(np.float32)


def raise_opset(model: ir.Model, version: int = OLDEST_OPSET) -> None:
    """Lift `model`, in place, to ONNX opset `version` if it is of an older one.

    Raises:
        ModelFileError: if the converter of the onnx package cannot.
    """
    given = model.opset_imports.get("", 1)
    if given >= version:
        return
    import onnx

    proto = ir.to_proto(model)
    try:
        lifted = onnx.version_converter.convert_version(proto, version)
    except (RuntimeError, onnx.version_converter.ConvertError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        why = f"is of opset {given} and cannot be lifted to {version}: {reason}"
        raise ModelFileError(model.graph.name, why, f"export it with opset {version} or later") from exc
    model.graph = ir.from_proto(lifted).graph
    model.ir_version = max(model.ir_version, _IR_OF_OPSET_19)


def to_half(model: ir.Model) -> None:
    """Let `model` compute in float16, in place; its inputs and outputs stay float32.

    Raises:
        ModelFileError: if it holds a number that float16 cannot.
    """
    graph = model.graph
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in [node for node in graph if is_operator(node, "BatchNormalization")]:
        _merge_numbers(graph, node)
    _store_half(graph)
    for node in list(graph):
        _retype(node)
    for value in list(graph.inputs):
        if value.dtype == ir.DataType.FLOAT:
            _cast_input(graph, value)
    for index, value in enumerate(list(graph.outputs)):
        if value.dtype == ir.DataType.FLOAT16 and value.producer() is not None:
            _cast_output(graph, index, value)


def _store_half(graph: ir.Graph) -> None:
    kept = {node.inputs[index] for node in graph for op, index in _KEPT_FLOAT if _reads(node, op, index)}
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value not in kept and not value.is_graph_input():
            value.const_value = _half_tensor(value)
            value.dtype = ir.DataType.FLOAT16


def _merge_numbers(graph: ir.Graph, norm: ir.Node) -> None:
    """Give `norm` mean 0 and variance 1, and what they did to its scale and shift."""
    if why_no_affine(norm) is not None:
        return
    scale, shift = scale_and_shift(norm)
    numbers = {"scale": scale, "shift": shift, "mean": np.zeros_like(scale), "variance": np.ones_like(scale)}
    for index, (role, array) in enumerate(numbers.items(), start=1):
        merged = new_initializer(graph, f"{norm.outputs[0].name}.{role}", array.astype(np.float32))
        norm.replace_input_with(index, merged)
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)


def _reads(node: ir.Node, op_type: str, index: int) -> bool:
    return is_operator(node, op_type) and len(node.inputs) > index


def _half_tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return ir.tensor(_half_array(str(value.name), value.const_value.numpy()), name=value.name)


def _half_array(name: str, numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half: npt.NDArray[np.float16] = numbers.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(numbers).max())
        raise ModelFileError(name, f"holds {largest:g}, and float16 ends at 65504", "keep this model in float32")
    return half


def _retype(node: ir.Node) -> None:
    """Let `node` say half where it said float: in attributes that name a type or hold numbers, and of its outputs."""
    for name, attribute in list(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.value == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT16)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(_half_array(name, attribute.value.numpy())))
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    readers = tuple(value.uses())
    cast = _cast(value, ir.DataType.FLOAT16, f"{value.name}:half")
    graph.insert_before(graph[0], cast)
    for reader, index in readers:
        reader.replace_input_with(index, cast.outputs[0])


def _cast_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    name = str(value.name)
    value.name = f"{name}:half"
    cast = _cast(value, ir.DataType.FLOAT, name)
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)], outputs=[result], name=f"{name}:cast")

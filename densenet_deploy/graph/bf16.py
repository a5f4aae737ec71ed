"""Write a model in BF16: weights, and every tensor between nodes that have a BF16 form.

A node is computed in BF16 if the definition of its operator allows bfloat16 wherever the node reads or makes float32.
Then each tensor has one type, that of its maker, and whoever needs the other type reads it through one Cast, so no Cast
undoes another. A weight is rounded to the nearest BF16 number, ties to even, and stored once for each type it is read
in.

Convolutions and pools have a BF16 form since operator set 22: a model of an older one is lifted first. BF16 spans the
range of FP32, so nothing has to stay in FP32 for its size; a number keeps 8 significant bits, off by 0.2 % at most.

ONNX Runtime's CPU kernels, which accumulate FP16 in FP32, include no BF16 convolution: such a file is for TensorRT.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.graph_pass import constant, new_initializer, unused_name
from densenet_deploy.graph.half import ASKED, HalfModel, finish, prepare, subject_of

OPSET: Final = 22
"""The first operator set in which Conv and the pools take bfloat16."""

_IR_VERSION: Final = 10  # the oldest that knows OPSET
_GRAPHS: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_FLOAT, _BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16
_SUFFIXES: Final = {_FLOAT: ":fp32", _BFLOAT16: ":bf16"}


def to_bf16(model: onnx.ModelProto, *, float_nodes: Collection[str] = (), keep_io: bool = True) -> HalfModel:
    """Return a copy of the FP32 `model` in BF16, of operator set 22 or later.

    Args:
        model: the graph.
        float_nodes: names of nodes that stay in FP32; operators without a BF16 form stay in any case.
        keep_io: whether inputs and outputs stay float32, behind a Cast each. If not, they are bfloat16.

    Raises:
        ModelFileError: if the model holds 16-bit floats already, or its operators cannot be lifted.
        UnknownNameError: if it has no node of a name in `float_nodes`.
    """
    half = prepare(_lifted(model), float_nodes)
    ShapeInferencePass(strict_mode=False)(half)
    reasons = dict(_reasons(half.graph, half.graph.opset_imports[""], float_nodes))
    nodes = {node for node in half.graph if str(node.name) not in reasons}
    _retype_weights(half.graph, nodes)
    _retype_activations(half.graph, nodes, keep_io)
    return finish(half, "BF16", reasons)


def _lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` in operator set 22 or later."""
    version = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), OPSET)
    if version >= OPSET:
        return model
    try:
        lifted = onnx.version_converter.convert_version(model, OPSET)
    except (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError) as exc:
        why = f"cannot be lifted from operator set {version} to {OPSET}: {' '.join(str(exc).split())}"
        raise ModelFileError(subject_of(model), why, f"export it with --opset {OPSET}") from exc
    lifted.ir_version = max(lifted.ir_version, _IR_VERSION)
    return lifted


def _reasons(graph: ir.Graph, version: int, asked: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each node that stays in FP32 with the reason, in execution order."""
    for node in graph:
        values = (*node.inputs, *node.outputs)
        if node.name in asked:
            yield str(node.name), ASKED
        elif any(value is not None and value.dtype == _FLOAT for value in values):
            reason = _why_no_form(node, version)
            if reason is not None:
                yield str(node.name), reason


def _why_no_form(node: ir.Node, version: int) -> str | None:
    """Say why `node` cannot be computed in BF16, or None if it can."""
    if node.domain != "" or not onnx.defs.has(node.op_type):
        return f"{node.op_type} is no operator of ONNX itself"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return f"{node.op_type} holds a graph of its own"
    schema = onnx.defs.get_schema(node.op_type, version, "")
    read, made = set(_float_types(schema.inputs, node.inputs)), set(_float_types(schema.outputs, node.outputs))
    allowing = {c.type_param_str for c in schema.type_constraints if "tensor(bfloat16)" in c.allowed_type_strs}
    if not read | made <= allowing:
        return f"{node.op_type} has no BF16 form in operator set {version}"
    return None if made <= read else f"the type of what {node.op_type} makes is not that of what it reads"


def _float_types(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]
) -> Iterator[str]:
    """Yield the type parameter of each float32 value; the last of `formals` may stand for many values."""
    for index, value in enumerate(values):
        if value is not None and value.dtype == _FLOAT:
            yield formals[min(index, len(formals) - 1)].type_str


def _retype_weights(graph: ir.Graph, nodes: Collection[ir.Node]) -> None:
    """Let `nodes` read their weights in BF16; a weight that others read too keeps its FP32 form beside it."""
    for value in list(graph.initializers.values()):
        array = constant(value)
        uses = [use for use in value.uses() if use.node in nodes]
        if array is None or not uses:
            continue
        rounded = array.astype(_BFLOAT16.numpy())
        if len(uses) == len(value.uses()) and not value.is_graph_output():
            value.const_value, value.dtype = ir.tensor(rounded, name=value.name), _BFLOAT16
        else:
            _read_instead(uses, new_initializer(graph, f"{value.name}{_SUFFIXES[_BFLOAT16]}", rounded))


def _retype_activations(graph: ir.Graph, nodes: Collection[ir.Node], keep_io: bool) -> None:
    """Type what `nodes` make, and put one Cast behind each tensor that is needed in the other type."""
    given = [value for value in graph.inputs if value.dtype == _FLOAT]
    made = [value for node in graph for value in node.outputs if value.dtype == _FLOAT]
    for value in (*given, *made):
        maker = value.producer()
        is_overridable = value.is_initializer()  # a default that a caller may replace keeps the type it is stored in
        is_half = maker in nodes if maker is not None else not (keep_io or is_overridable)
        value.dtype = _BFLOAT16 if is_half else _FLOAT
        other = _FLOAT if is_half else _BFLOAT16
        uses = [use for use in value.uses() if (use.node in nodes) != is_half]
        leaves_cast = value.is_graph_output() and is_half == keep_io
        if uses or leaves_cast:
            _read_instead(uses, _cast(graph, value, other, leaves_cast))


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, leaves: bool) -> ir.Value:
    """Return `value` as `dtype`; if that `leaves` the graph it takes over the name of `value`."""
    name = str(value.name)
    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    if leaves:
        value.name = unused_name(graph, name + _SUFFIXES[_BFLOAT16 if dtype == _FLOAT else _FLOAT])
        graph.outputs[:] = [result if output is value else output for output in graph.outputs]
    else:
        result.name = unused_name(graph, name + _SUFFIXES[dtype])
    cast = ir.node("Cast", [value], {"to": dtype}, outputs=[result], name=f"{result.name}.cast")
    maker = value.producer()
    if maker is not None:
        graph.insert_after(maker, cast)
    else:
        graph.insert_before(graph[0], cast)
    return result


def _read_instead(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)

"""Write a model in FP16 or BF16: weights, and every tensor between nodes that have a form in that type.

FP16 has 5 exponent and 10 fraction bits: 65504 is its largest number and 2⁻²⁴ its smallest, so activations may
overflow. BF16 has the 8 exponent bits of FP32 and 7 fraction bits: nothing overflows, and every number is coarser, off
by 0.2 % at most.

A node is computed in the reduced type if the schema of its operator allows that type wherever the node reads or makes
float32. Then each tensor has one type, that of its maker, and nodes that need the other type read it through one Cast,
so no Cast undoes another. A weight is rounded to nearest, ties to even, and stored once for each type it is read in.

What does not fit FP16 stays in FP32: nodes that make or read a tensor with a calibrated range near 65504, or that
read a weight beyond it. A weight under 2⁻²⁴ becomes ±2⁻²⁴ and keeps its sign, and the notes count such weights. Fold
BatchNormalizations first: a variance under 6·10⁻⁵ keeps only a few of its digits in FP16.

Convolutions and pools have a BF16 form since operator set 22: a model of an older one is lifted first. ONNX Runtime's
CPU kernels include no BF16 convolution, and around operators without an FP16 kernel, nearly all of them, they cast to
FP32 and keep activations there. So on a CPU an FP16 file shows what rounding the weights costs, and no activation
overflows; on a GPU it would. `rounded` gives a graph that shows both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass, ShapeInferencePass

from densenet_deploy.errors import ModelFileError, UnknownNameError
from densenet_deploy.graph.nodes import constant, is_operator, new_initializer, unused_name
from densenet_deploy.options import require_choice

LARGEST: Final = 65504.0
"""The largest finite FP16 number."""

MARGIN: Final = 2.0
"""How much larger than in calibration an activation may get: a range beyond LARGEST / MARGIN is too large."""

BF16_OPSET: Final = 22
"""The first operator set in which Conv and the pools take bfloat16."""

_FLOAT: Final = ir.DataType.FLOAT
_SMALLEST: Final = 2.0**-24
_GRAPHS: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_KEPT: Final = frozenset({"CumSum", "Max", "Min", "RandomUniformLike", "RoiAlign", "TopK"})
"""Operators with an FP16 form that ONNX Runtime's converter (transformers/float16.py) keeps in FP32 all the same."""

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Precision:
    """A 16-bit type: its name in sentences, what ONNX calls it, and the first operator set to write it in."""

    label: str
    dtype: ir.DataType
    opset: int

    @property
    def onnx_type(self) -> str:
        return f"tensor({self.dtype.name.lower()})"

    def rounded(self, array: Float) -> npt.NDArray[Any]:
        """Return `array` in this type; FP16 keeps the sign of numbers too small for it."""
        nearest: npt.NDArray[Any] = array.astype(self.dtype.numpy())
        if self.dtype != ir.DataType.FLOAT16:
            return nearest
        return np.where(_is_tiny(array), np.copysign(np.float16(_SMALLEST), nearest), nearest)


def _is_tiny(array: Float) -> npt.NDArray[np.bool_]:
    tiny: npt.NDArray[np.bool_] = (array != 0) & (np.abs(array) < _SMALLEST)
    return tiny


_PRECISIONS: Final = {
    "fp16": _Precision("FP16", ir.DataType.FLOAT16, 6),  # the first in which a Cast takes the number of a type
    "bf16": _Precision("BF16", ir.DataType.BFLOAT16, BF16_OPSET),
}
_SUFFIXES: Final = {_FLOAT: ":fp32", ir.DataType.FLOAT16: ":fp16", ir.DataType.BFLOAT16: ":bf16"}


@dataclass(frozen=True)
class ReducedModel:
    """A model in FP16 or BF16, except for some nodes.

    Attributes:
        model: the graph, which `onnx.checker` has checked in full.
        reasons: why each node that stayed in FP32 did, by its name, in execution order.
        notes: sentences about numbers that the type holds only roughly.
    """

    model: onnx.ModelProto
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def float_nodes(self) -> tuple[str, ...]:
        """The names of the nodes that stayed in FP32."""
        return tuple(self.reasons)


def reduce_precision(
    model: onnx.ModelProto,
    precision: str,
    ranges: Mapping[str, float] | None = None,
    *,
    float_nodes: Collection[str] = (),
) -> ReducedModel:
    """Return a copy of the FP32 `model` in `fp16`, or in `bf16` and operator set 22 or later.

    Inputs and outputs stay float32, with a Cast each.

    Args:
        model: the graph.
        precision: `fp16` or `bf16`.
        ranges: by tensor name, the largest absolute value that calibration saw; a tensor without one is taken to fit.
            BF16 needs none.
        float_nodes: names of nodes that stay in FP32 in any case; operators without a 16-bit form do anyway.

    Raises:
        ModelFileError: if the model holds 16-bit floats already, or cannot be lifted to the operator set.
        UnknownNameError: if `precision` is unknown, or a name in `float_nodes` is not that of a node.
    """
    kind = _PRECISIONS[require_choice("precision", precision, _PRECISIONS)]
    copy = _prepared(model, kind, float_nodes)
    reasons = dict(_reasons(copy.graph, kind, ranges or {}, float_nodes))
    notes = _notes(copy.graph, reasons) if kind.dtype == ir.DataType.FLOAT16 else ()
    _retype(copy.graph, kind, reasons)
    return ReducedModel(_checked(copy, kind), reasons, notes)


def to_fp16_in_place(model: ir.Model) -> None:
    """Let `model`, with or without Q/DQ nodes, compute in FP16, except for nodes without such a form.

    Its inputs and outputs stay float32. The type of a DequantizeLinear's output is that of its scale from operator set
    19 on, so that FP16 scales leave no float32 between them.

    Raises:
        ModelFileError: if a weight is beyond 65504.
    """
    kind, graph = _PRECISIONS["fp16"], model.graph
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for value in graph.initializers.values():
        array = constant(value)
        if array is not None and not (np.abs(array) <= LARGEST).all():
            why = f"holds {np.abs(array).max():g}, beyond 65504, the largest FP16 number"
            raise ModelFileError(value.name, why, "keep this model in FP32")
    ShapeInferencePass(strict_mode=False)(model)
    _retype(graph, kind, dict(_reasons_of_form(graph, kind)))


def lift_opset(model: ir.Model, version: int) -> None:
    """Convert `model`, in place, to ONNX operator set `version` if it is of an older one.

    Raises:
        ModelFileError: if the converter of the onnx package cannot.
    """
    given = model.opset_imports.get("", version)
    if given >= version:
        return
    try:
        lifted = onnx.version_converter.convert_version(ir.to_proto(model), version)
    except (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as exc:
        why = f"cannot be lifted from operator set {given} to {version}: {' '.join(str(exc).split())}"
        raise ModelFileError(_subject_of(model), why, f"export it with --opset {version}") from exc
    model.graph = ir.from_proto(lifted).graph
    oldest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", version)])
    model.ir_version = max(model.ir_version, oldest)


def _prepared(model: onnx.ModelProto, kind: _Precision, float_nodes: Collection[str]) -> ir.Model:
    """Return a copy in which every node has a name of its own, every constant is an initializer and types are known."""
    copy = ir.from_proto(model)
    lift_opset(copy, kind.opset)
    NameFixPass()(copy)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    reduced = {precision.dtype for precision in _PRECISIONS.values()}
    if any(value.dtype in reduced for value in copy.graph.initializers.values()):
        raise ModelFileError(_subject_of(copy), "holds 16-bit floats already", "use it as it is, or start from FP32")
    known = [str(node.name) for node in copy.graph]
    for name in float_nodes:
        if name not in known:
            raise UnknownNameError.among("node of the graph", name, known)
    ShapeInferencePass()(copy)
    return copy


def _checked(model: ir.Model, kind: _Precision) -> onnx.ModelProto:
    """Return `model` after a check of shapes and types."""
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        why = f"is not a valid graph in {kind.label}: {' '.join(str(exc).split())}"
        raise ModelFileError(_subject_of(model), why, "keep the node that it names in FP32 with float_nodes") from exc
    return proto


def _subject_of(model: ir.Model) -> str:
    """Return what an error calls `model`, of which no file is known."""
    return model.graph.name or "graph"


# -- which nodes stay in FP32


def _reasons(
    graph: ir.Graph, kind: _Precision, ranges: Mapping[str, float], asked: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield each node that stays in FP32 with the reason, in execution order."""
    is_fp16, formless = kind.dtype == ir.DataType.FLOAT16, dict(_reasons_of_form(graph, kind))
    for node in graph:
        name = str(node.name)
        if name in asked:
            yield name, "it was asked to stay in FP32"
        elif is_fp16 and (reason := _why_too_large(node, ranges)):
            yield name, reason
        elif is_fp16 and node.op_type in _KEPT and node.domain == "":
            yield name, f"{node.op_type} stays in FP32, as in ONNX Runtime's own converter"
        elif name in formless:
            yield name, formless[name]


def _why_too_large(node: ir.Node, ranges: Mapping[str, float]) -> str | None:
    for value in (*node.inputs, *node.outputs):
        name = str(value.name) if value is not None else ""
        array = constant(value)
        if array is not None and (beyond := _beyond(array)).size:
            return f"its weight {name} holds {beyond.max():.6g}, beyond 65504, the largest FP16 number"
        if array is None and name in ranges and not ranges[name] <= LARGEST / MARGIN:
            reach = f"{name} reaches {ranges[name]:.6g} in calibration"
            return f"{reach}, more than 1/{MARGIN:g} of 65504, the largest FP16 number"
    return None


def _beyond(array: Float) -> Float:
    """Return the absolute values in `array` that FP16 cannot hold; it has inf and NaN as FP32 does."""
    sizes: Float = np.abs(array)
    return sizes[np.isfinite(sizes) & (sizes > LARGEST)]


def _reasons_of_form(graph: ir.Graph, kind: _Precision) -> Iterator[tuple[str, str]]:
    """Yield each node with float32 values that cannot be computed in the reduced type, with the reason."""
    version = graph.opset_imports[""]
    for node in graph:
        if any(value is not None and value.dtype == _FLOAT for value in (*node.inputs, *node.outputs)):
            reason = _why_no_form(node, kind, version)
            if reason is not None:
                yield str(node.name), reason


def _why_no_form(node: ir.Node, kind: _Precision, version: int) -> str | None:
    if node.domain != "" or not onnx.defs.has(node.op_type):
        return f"{node.op_type} is not an operator of ONNX itself"
    if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
        return f"{node.op_type} holds a graph of its own"
    schema = onnx.defs.get_schema(node.op_type, version, "")
    read, made = set(_float_types(schema.inputs, node.inputs)), set(_float_types(schema.outputs, node.outputs))
    allowing = {c.type_param_str for c in schema.type_constraints if kind.onnx_type in c.allowed_type_strs}
    if not read | made <= allowing:
        return f"{node.op_type} has no {kind.label} form in operator set {version}"
    return None if made <= read else f"the type of what {node.op_type} makes is not that of what it reads"


def _float_types(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], values: Sequence[ir.Value | None]
) -> Iterator[str]:
    """Yield the type parameter of each float32 value; the last of `formals` may stand for many values."""
    for index, value in enumerate(values):
        if value is not None and value.dtype == _FLOAT:
            yield formals[min(index, len(formals) - 1)].type_str


def _notes(graph: ir.Graph, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Say how many weights of nodes in FP16 are smaller than its smallest number."""
    reduced = (node for node in graph if node.name not in reasons)
    read = {value for node in reduced for value in node.inputs}
    arrays = [array for value in read if (array := constant(value)) is not None]
    tiny = sum(int(_is_tiny(array).sum()) for array in arrays)
    total = sum(array.size for array in arrays)
    return (f"{tiny} of {total} weights were raised to 2⁻²⁴, the smallest FP16 number",) if tiny else ()


# -- the conversion


def _retype(graph: ir.Graph, kind: _Precision, float_nodes: Collection[str]) -> None:
    """Let all nodes but `float_nodes` compute in the reduced type."""
    nodes = {node for node in graph if str(node.name) not in float_nodes}
    _retype_weights(graph, kind, nodes)
    _retype_activations(graph, kind, nodes)


def _retype_weights(graph: ir.Graph, kind: _Precision, nodes: Collection[ir.Node]) -> None:
    """Let `nodes` read their weights rounded; a weight that others read too keeps its FP32 form beside it."""
    for value in list(graph.initializers.values()):
        array = constant(value)
        uses = [use for use in value.uses() if use.node in nodes]
        if array is None or not uses:
            continue
        rounded = kind.rounded(array)
        if len(uses) == len(value.uses()) and not value.is_graph_output():
            value.const_value, value.dtype = ir.tensor(rounded), kind.dtype
        else:
            _read_instead(uses, new_initializer(graph, f"{value.name}{_SUFFIXES[kind.dtype]}", rounded))


def _retype_activations(graph: ir.Graph, kind: _Precision, nodes: Collection[ir.Node]) -> None:
    """Type what `nodes` make, and put one Cast after each tensor that is needed in the other type."""
    given = [value for value in graph.inputs if value.dtype == _FLOAT]
    made = [value for node in graph for value in node.outputs if value.dtype == _FLOAT]
    for value in (*given, *made):
        is_reduced = value.producer() in nodes
        value.dtype = kind.dtype if is_reduced else _FLOAT
        other = _FLOAT if is_reduced else kind.dtype
        uses = [use for use in value.uses() if (use.node in nodes) != is_reduced]
        leaves_cast = value.is_graph_output() and is_reduced
        if uses or leaves_cast:
            _read_instead(uses, _cast_after(graph, value, other, leaves_cast))


def _cast_after(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, leaves: bool) -> ir.Value:
    """Return `value` as `dtype`; if that `leaves` the graph it takes over the name of `value`."""
    assert value.dtype is not None
    name, maker = str(value.name), value.producer()
    if leaves:
        value.name = unused_name(graph, name + _SUFFIXES[value.dtype])
    cast = _new_cast(value, dtype, name if leaves else unused_name(graph, name + _SUFFIXES[dtype]))
    result = cast.outputs[0]
    if leaves:
        graph.outputs[:] = [result if output is value else output for output in graph.outputs]
    if maker is not None:
        graph.insert_after(maker, cast)
    else:
        graph.insert_before(graph[0], cast)
    return result


def _new_cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    result = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    return ir.node("Cast", [value], {"to": dtype}, outputs=[result], name=f"{name}.cast")


def _read_instead(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, index in uses:
        node.replace_input_with(index, value)


# -- the same rounding in FP32


def rounded(reduced: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float32 form of `reduced`, a graph in FP16 or BF16 with float32 inputs and outputs.

    It shows what a machine with 16-bit arithmetic would compute, on one without. Each stored number is the 16-bit one,
    written in float32. Two Casts, to that type and back, follow each node that makes a 16-bit tensor, so a number
    beyond the range becomes infinite. Inside a node numbers are FP32: tensor cores accumulate in FP32 too, and a
    machine that accumulates in 16 bits is less accurate.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(reduced))
    graph, kinds = model.graph, {precision.dtype for precision in _PRECISIONS.values()}
    for value in [value for value in graph.initializers.values() if value.dtype in kinds]:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float32)
        value.const_value, value.dtype = ir.tensor(array), _FLOAT
    for node in list(graph):
        for value in [value for value in node.outputs if value.dtype in kinds]:
            _round(graph, node, value)
    return ir.to_proto(model)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let the readers of `value` read it rounded to the type that it has, in float32."""
    kind, readers, new = value.dtype, tuple(value.uses()), []
    assert kind is not None
    narrow = value
    if not is_operator(node, "Cast"):
        value.dtype = _FLOAT
        new = [_new_cast(value, kind, unused_name(graph, f"{value.name}:narrow"))]
        narrow = new[0].outputs[0]
    back = _new_cast(narrow, _FLOAT, unused_name(graph, f"{value.name}:rounded"))
    graph.insert_after(node, [*new, back])
    _read_instead(readers, back.outputs[0])

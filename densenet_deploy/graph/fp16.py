"""Write a model in FP16, but for the nodes whose numbers do not fit.

`onnxruntime.transformers.float16` casts the weights and puts Casts around the graph and around each node that stays in
FP32. What it does not do is done here:

- It looks at no activation. A tensor whose calibrated range comes near 65504 keeps all nodes that make or read it in
  FP32; so does a weight beyond 65504, which the converter would cut to 65504.
- Between two neighbours that stay in FP32 it casts to FP16 and back, which turns what they were kept for into inf.
  Such pairs are removed, and the tensor keeps its name.
- It writes no valid graph where two readers of a tensor stay in FP32 (two Casts of one name), puts its Casts behind all
  other nodes, and cannot tell nodes without a name apart. Each Cast is kept once, nodes are named and sorted.

A weight under 2⁻²⁴, FP16's smallest number, becomes ±2⁻²⁴ and keeps its sign: an error of less than 2⁻²⁴, which is said
in the notes. Fold BatchNormalizations first: a variance under 6·10⁻⁵ keeps only a few of its digits.

On x86 ONNX Runtime's CPU kernels accumulate FP16 in FP32, and more than that: around operators without an FP16 kernel,
which there are nearly all, it casts to FP32 and drops the Casts between neighbours, so activations stay in FP32. There
the file shows what rounding the weights costs, and no activation overflows; on a GPU it would. So ranges decide.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from densenet_deploy.graph.graph_pass import constant, is_operator, take_over_output
from densenet_deploy.graph.half import ASKED, HalfModel, finish, prepare
from densenet_deploy.packages import require_packages

LARGEST: Final = 65504.0
"""The largest finite FP16 number."""

MARGIN: Final = 2.0
"""How much larger than in calibration an activation may get: a range beyond LARGEST / MARGIN is too large."""

_SMALLEST: Final = 2.0**-24
_CONVERTED: Final = "_cast_to_fp16"  # the converter's suffix for the FP32 form of a tensor


def to_fp16(
    model: onnx.ModelProto,
    ranges: Mapping[str, float] | None = None,
    *,
    float_nodes: Collection[str] = (),
    keep_io: bool = True,
) -> HalfModel:
    """Return a copy of the FP32 `model` in FP16.

    Args:
        model: the graph; its operator set stays what it is.
        ranges: by tensor name, the largest absolute value that calibration saw. A tensor without one is taken to fit.
        float_nodes: names of nodes that stay in FP32 in any case. A weight that one shares with a node in FP16 is
            rounded for both.
        keep_io: whether inputs and outputs stay float32, behind a Cast each. If not, they are float16, and an output
            beyond 65504 is inf.

    Raises:
        MissingPackageError: if ONNX Runtime is not installed.
        ModelFileError: if the model holds 16-bit floats already, or an operator has no FP16 form.
        UnknownNameError: if it has no node of a name in `float_nodes`.
    """
    require_packages("onnxruntime", "onnxruntime")
    source = prepare(model, float_nodes)
    reasons = dict(_reasons(source.graph, ranges or {}, float_nodes))
    converted = _converted(source, list(reasons), keep_io)
    _remove_cast_pairs(converted.graph)
    RemoveUnusedNodesPass()(converted)
    _restore_names(converted.graph, {str(value.name) for node in source.graph for value in node.outputs})
    return finish(converted, "FP16", reasons, _notes(source.graph, reasons))


def _reasons(graph: ir.Graph, ranges: Mapping[str, float], asked: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each node that has to stay in FP32 with the reason, in execution order."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    for node in graph:
        if node.name in asked:
            yield str(node.name), ASKED
        elif reason := _why_too_large(node, ranges):
            yield str(node.name), reason
        elif node.op_type in DEFAULT_OP_BLOCK_LIST:
            yield str(node.name), f"ONNX Runtime's converter keeps every {node.op_type} in FP32"


def _why_too_large(node: ir.Node, ranges: Mapping[str, float]) -> str | None:
    for value in (*node.inputs, *node.outputs):
        name = str(value.name) if value is not None else ""
        array = constant(value)
        if array is not None and (largest := _largest(array)) > LARGEST:
            return f"its weight {name} holds {largest:.6g}, beyond 65504, the largest FP16 number"
        if array is None and not ranges.get(name, 0) <= LARGEST / MARGIN:
            reach = f"{name} reaches {ranges[name]:.6g} in calibration"
            return f"{reach}, more than 1/{MARGIN:g} of 65504, the largest FP16 number"
    return None


def _largest(array: npt.NDArray[np.floating[Any]]) -> float:
    """Return the largest finite absolute value of `array`; FP16 has inf and NaN as FP32 does."""
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))


def _notes(graph: ir.Graph, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Say how many weights of nodes in FP16 are smaller than FP16's smallest number."""
    halves = (node for node in graph if node.name not in reasons)
    weights = {value for node in halves for value in node.inputs if constant(value) is not None}
    arrays = [array for value in weights if (array := constant(value)) is not None]
    tiny = sum(int(((array != 0) & (np.abs(array) < _SMALLEST)).sum()) for array in arrays)
    total = sum(array.size for array in arrays)
    return (f"{tiny} of {total} weights were raised to 2⁻²⁴, the smallest FP16 number",) if tiny else ()


def _converted(source: ir.Model, blocked: list[str], keep_io: bool) -> ir.Model:
    """Return what ONNX Runtime's converter makes of `source`, in execution order and with each Cast once."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto: onnx.ModelProto = ir.to_proto(source)
    known = [info for info in proto.graph.value_info if info.name not in source.graph.initializers]
    del proto.graph.value_info[:]  # the converter would type a weight twice
    proto.graph.value_info.extend(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = convert_float_to_float16(proto, max_finite_val=LARGEST, keep_io_types=keep_io, node_block_list=blocked)
    nodes = list({tuple(node.output): node for node in proto.graph.node}.values())
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = ir.from_proto(proto)
    model.graph.sort()
    return model


def _remove_cast_pairs(graph: ir.Graph) -> None:
    """Let whoever reads a tensor that was cast to FP16 and back read the tensor itself."""
    for back in graph:
        origin = _origin(back)
        if origin is None:
            continue
        result, maker = back.outputs[0], origin.producer()
        if not result.is_graph_output():
            ir.convenience.replace_all_uses_with(result, origin)
        elif maker is not None and len(maker.outputs) == 1 and not origin.is_graph_output():
            take_over_output(maker, result)


def _origin(back: ir.Node) -> ir.Value | None:
    """Return the FP32 tensor that `back` restores from FP16, or None if it does something else."""
    there = back.inputs[0].producer() if is_operator(back, "Cast") and back.inputs[0] is not None else None
    if there is None or not is_operator(there, "Cast"):
        return None
    origin, types = there.inputs[0], (there.outputs[0].dtype, back.outputs[0].dtype)
    is_pair = types == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
    return origin if is_pair and origin is not None and origin.dtype == ir.DataType.FLOAT else None


def _restore_names(graph: ir.Graph, known: Collection[str]) -> None:
    """Give tensors that exist in FP32 alone the names that they had."""
    values = {str(value.name): value for node in graph for value in node.outputs}
    for name, value in values.items():
        old = name.removesuffix(_CONVERTED)
        if old != name and old in known and old not in values:
            value.name = old

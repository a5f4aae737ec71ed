"""A model in a 16-bit float: what both conversions return, and what they do to a graph first and last.

FP16 has 5 exponent and 10 fraction bits: 65504 is its largest number and 2⁻²⁴ its smallest, so activations may
overflow. BF16 has the 8 exponent bits of FP32 and 7 fraction bits: nothing overflows, and every number is coarser.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, NameFixPass

from densenet_deploy.errors import ModelFileError, UnknownNameError

_HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
ASKED: Final = "it was asked to stay in FP32"


@dataclass(frozen=True)
class HalfModel:
    """A model in FP16 or BF16, but for some nodes.

    Attributes:
        model: the graph, which `onnx.checker` has checked in full.
        float_nodes: the names of the nodes that stayed in FP32, in execution order.
        reasons: for each of them a sentence that says why.
        notes: sentences about numbers that the type holds only roughly.
    """

    model: onnx.ModelProto
    float_nodes: tuple[str, ...]
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()


def prepare(model: onnx.ModelProto, float_nodes: Collection[str]) -> ir.Model:
    """Return a copy of `model` in which every node has a name of its own and every constant is an initializer.

    Raises:
        ModelFileError: if it holds 16-bit floats already.
        UnknownNameError: if it has no node of a name in `float_nodes`.
    """
    copy = ir.from_proto(model)
    NameFixPass()(copy)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    if any(value.dtype in _HALVES for value in copy.graph.initializers.values()):
        raise ModelFileError(subject_of(model), "holds 16-bit floats already", "use it as it is, or start from FP32")
    known = [str(node.name) for node in copy.graph]
    for name in float_nodes:
        if name not in known:
            raise UnknownNameError.among("node of the graph", name, known)
    return copy


def finish(model: ir.Model, precision: str, reasons: Mapping[str, str], notes: tuple[str, ...] = ()) -> HalfModel:
    """Check `model`, shapes and types included, and return it with what is to be said about it.

    Raises:
        ModelFileError: if the graph mixes types, as where an operator has no form in `precision`.
    """
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        why = f"is no valid graph in {precision}: {' '.join(str(exc).split())}"
        raise ModelFileError(subject_of(proto), why, "keep the node that it names in FP32 with float_nodes") from exc
    return HalfModel(proto, tuple(reasons), dict(reasons), notes)


def subject_of(model: onnx.ModelProto) -> str:
    """Return what an error calls `model`, of which no file is known."""
    return model.graph.name or "graph"

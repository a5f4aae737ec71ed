"""Simplify a model with onnxsim, keeping the names and types that we need.

onnxsim folds constants and removes what is without effect. BatchNormalization is left to our own pass, which keeps
meaningful names, and equal initializers stay apart: in an untrained network a norm's weight equals its
variance, and merged they would carry each other's names. Where the file holds quantization no constant is folded at
all, because onnxsim would fold a DequantizeLinear of an int8 weight into a float weight four times its size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import onnx

from densenet_deploy.errors import ModelFileError
from densenet_deploy.graph.onnx_file import has_quantization

log = logging.getLogger(__name__)

_KEPT_APART: Final = ["eliminate_duplicate_initializer"]


@dataclass(frozen=True)
class Simplified:
    """The simplified model and sentences about what was deliberately not done."""

    model: onnx.ModelProto
    notes: tuple[str, ...]


def simplify_onnx(model: onnx.ModelProto) -> Simplified:
    """Return a simpler model that computes the same; `model` itself is unchanged.

    Raises:
        ModelFileError: if onnxsim cannot process the model.
    """
    import onnxsim

    is_quantized = has_quantization(model)
    try:
        simplified, _ = onnxsim.simplify(
            model, skip_fuse_bn=True, skipped_optimizers=_KEPT_APART, skip_constant_folding=is_quantized
        )
    except Exception as exc:
        raise ModelFileError(
            model.graph.name or "model", f"onnxsim cannot simplify it: {exc}", "check the model"
        ) from exc
    del simplified.metadata_props[:]  # a record that onnxsim adds
    simplified.metadata_props.MergeFrom(model.metadata_props)
    notes = (
        ("the file is quantized: constants were not folded, so that int8 weights stay int8",) if is_quantized else ()
    )
    return Simplified(simplified, notes)

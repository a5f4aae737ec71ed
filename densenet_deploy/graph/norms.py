"""What a BatchNormalization does to a channel: y = s·x + t with s = γ/√(var + ε) and t = β − μ·s."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import constant

Double = npt.NDArray[np.float64]


def why_no_affine(norm: ir.Node) -> str | None:
    """Say why the BatchNormalization `norm` is no fixed scale and shift, or None if it is."""
    if norm.attributes.get_int("training_mode", 0) != 0 or len(norm.outputs) > 1:
        return "it is in training mode"
    if any(constant(value) is None for value in norm.inputs[1:]):
        return "its numbers are not float32 constants"
    return None


def scale_and_shift(norm: ir.Node) -> tuple[Double, Double]:
    """Return s and t of `norm`, (C,) each, in float64; `why_no_affine` must have found nothing."""
    gamma, beta, mean, variance = (np.asarray(constant(value), np.float64) for value in norm.inputs[1:5])
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale

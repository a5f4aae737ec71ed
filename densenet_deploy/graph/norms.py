"""What a BatchNormalization does to a channel: y = s·x + t with s = γ/√(var + ε) and t = β − μ·s."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.graph_pass import Double, constant


def why_no_affine(norm: ir.Node) -> str | None:
    """Say why the BatchNormalization `norm` is no fixed scale and shift, in words that follow its name, or None."""
    if norm.attributes.get_int("training_mode", 0) != 0 or len(norm.outputs) > 1:
        return "is in training mode"
    if any(constant(value) is None for value in norm.inputs[1:]):
        return "has numbers that are not float32 constants"
    return None


def scale_and_shift(norm: ir.Node) -> tuple[Double, Double]:
    """Return s and t of `norm`, (C,) each, in float64; `why_no_affine` must have found nothing."""
    gamma, beta, mean, variance = (np.asarray(constant(value), np.float64) for value in norm.inputs[1:5])
    scale = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale

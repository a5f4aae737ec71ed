"""Weights and biases as integers.

Weights are symmetric: w ≈ q·s with q in ±127, or ±63 where the CPU adds pairs of products in 16 bits that would
overflow (x86 without VNNI: 2·255·127 > 2¹⁵). A bias is int32 at scale s_x·s_w. That can overflow without a sound: a
channel whose weights are nearly dead but whose bias is not needs a bias of many billions. So the weight scale of a row
is raised until its bias fits,

    s_w = max(max|w| / limit, |b| / (s_x · 2³⁰)),

which costs such a row its weights, that is nothing: it was a constant, its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

LIMITS: Final = {8: 127, 7: 63}
_BIAS_LIMIT: Final = 2.0**30
_SMALLEST: Final = 1e-12


@dataclass(frozen=True)
class IntegerWeights:
    """int8 weights (M, …), their scales, (M,) or () where all rows share one, and an int32 bias (M,)."""

    codes: Int8
    scales: Float
    bias: npt.NDArray[np.int32]


def quantize_rows(
    weights: Double, *, bits: int = 8, per_channel: bool = True, smallest: Double | float = _SMALLEST
) -> tuple[Int8, Float]:
    """Return int8 codes of `weights` (M, …) and their scales, (M,) or () for all rows; no scale is below `smallest`."""
    limit = LIMITS[bits]
    rows = np.abs(weights.reshape(len(weights), -1)).max(axis=1)
    scales = np.maximum(np.maximum(rows / limit, smallest), _SMALLEST)
    if not per_channel:
        scales = scales.max()
    rounded = scales.astype(np.float32)
    column = np.reshape(rounded.astype(np.float64), (-1, *[1] * (weights.ndim - 1)))
    return np.clip(np.rint(weights / column), -limit, limit).astype(np.int8), rounded


def quantize_with_bias(
    weights: Double, bias: Double, input_scale: float, *, bits: int = 8, per_channel: bool = True
) -> IntegerWeights:
    """Write `weights` (M, …) and `bias` (M,) for an input of scale `input_scale`."""
    needed = np.abs(bias) / (input_scale * _BIAS_LIMIT)
    codes, scales = quantize_rows(weights, bits=bits, per_channel=per_channel, smallest=needed)
    return IntegerWeights(codes, scales, np.rint(bias / (input_scale * scales.astype(np.float64))).astype(np.int32))

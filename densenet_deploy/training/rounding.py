"""Rounding and clipping with gradients that pass.

Rounding is ONNX's: to the nearest, ties to even. Its derivative is zero almost everywhere; the straight-through
estimator (Bengio et al. 2013, https://arxiv.org/abs/1308.3432) passes the gradient on as if there had been none, and
nothing where the value saturated:

    ŷ = clamp(round(x·f), low, high),   ∂ŷ/∂x ≈ f inside of low..high, 0 beyond
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rounded(torch.autograd.Function):
    """clamp(round(x·f), low, high), or with x/f; the gradient reaches x, and f if it wants one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | None, low: float, high: float, is_divisor: bool) -> Tensor:
        scaled = x if factor is None else x / factor if is_divisor else x * factor
        rounded = torch.round(scaled) if factor is None else scaled.round_()
        clamped = rounded.clamp(low, high)
        is_inside = rounded == clamped
        wants_factor = factor is not None and factor.requires_grad
        ctx.save_for_backward(is_inside, factor, x if wants_factor else None)
        ctx.is_divisor = is_divisor
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        is_inside, factor, x = ctx.saved_tensors
        passed = gradients[0] * is_inside
        if factor is None:
            return passed, None, None, None, None
        for_factor = None
        if x is not None:
            slope = -x / factor**2 if ctx.is_divisor else x
            for_factor = (passed * slope).sum_to_size(factor.shape)
        return (passed.div_(factor) if ctx.is_divisor else passed.mul_(factor)), for_factor, None, None, None


class Larger(torch.autograd.Function):
    """max(x, y), or with a sign of −1 min(x, y); where both are the same, the gradient goes to x alone.

    PyTorch's own maximum gives each a half, which takes four more passes over the gradient of a feature map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(x >= y if sign > 0 else x <= y)
        ctx.shapes = x.shape, y.shape
        return torch.maximum(x, y) if sign > 0 else torch.minimum(x, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (is_first,), (gradient,) = ctx.saved_tensors, gradients
        for_first, for_second = gradient * is_first, None
        if ctx.needs_input_grad[1]:
            for_second = (gradient - for_first).sum_to_size(ctx.shapes[1])
        return for_first.sum_to_size(ctx.shapes[0]), for_second, None


def rounded(values: Tensor, low: float, high: float) -> Tensor:
    """Return `values` rounded, ties to even, and clamped; the gradient passes straight through between the limits.

    >>> rounded(torch.tensor([0.5, 1.5, 9.0]), 0, 5)
    tensor([0., 2., 5.])
    """
    result: Tensor = Rounded.apply(values, None, low, high, False)
    return result

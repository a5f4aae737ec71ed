"""Weights that PyTorch computes from other tensors of a state dict, here PyTorch's or NumPy's, before every call.

* Pruning: `weight_orig` and `weight_mask`, W = W_orig · mask (`torch.nn.utils.prune`).
* Weight normalization: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and `original1`,
  W = g · v / ‖v‖, the norm over the axes where g has one number (https://arxiv.org/abs/1602.07868).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final


def _masked(weight: Any, mask: Any) -> Any:
    return weight * mask


def _normalized(length: Any, direction: Any) -> Any:
    axes = tuple(axis for axis, size in enumerate(length.shape) if size == 1) if length.ndim else None
    return direction * (length / (direction * direction).sum(axis=axes, keepdims=True) ** 0.5)


_RULES: Final[tuple[tuple[str, str, str, Callable[[Any, Any], Any]], ...]] = (
    ("{}_orig", "{}_mask", "{}", _masked),
    ("{}_g", "{}_v", "{}", _normalized),
    ("parametrizations.{}.original0", "parametrizations.{}.original1", "{}", _normalized),
)
"""Names of two tensors, that of what is computed of them, and how."""

_COMPUTED: Final = ("weight", "bias")


def with_computed_weights(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `tensors` with each pair replaced by the weight that it stands for, and the names of these weights."""
    plain, computed = dict(tensors), []
    for name in tensors:
        for first, second, weight, compute in _rules_for(name):
            one: Any = plain.get(first)
            other: Any = plain.get(second)
            if hasattr(one, "ndim") and hasattr(other, "ndim") and weight not in tensors:
                plain = _replaced(plain, {first: (weight, compute(one, other)), second: None})
                computed.append(weight)
    return plain, tuple(computed)


def _rules_for(name: str) -> Iterator[tuple[str, str, str, Callable[[Any, Any], Any]]]:
    """Yield the rules whose first tensor is `name`, with full names."""
    for kind in _COMPUTED:
        for first, second, weight, compute in _RULES:
            root = name.removesuffix(first.format(kind))
            if not root or root.endswith("."):
                yield name, root + second.format(kind), root + weight.format(kind), compute


def _replaced(tensors: Mapping[str, Any], changes: Mapping[str, tuple[str, Any] | None]) -> dict[str, Any]:
    """Return `tensors` in their order, with other names and values where `changes` has some, without those of None."""
    kept = {name: changes.get(name, (name, value)) for name, value in tensors.items()}
    return dict(pair for pair in kept.values() if pair is not None)

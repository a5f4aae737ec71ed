"""Weights that PyTorch computes from other tensors before every call, in a state dict or in a module.

* Pruning: `weight_orig` and `weight_mask`, W = W_orig · mask (`torch.nn.utils.prune`).
* Weight normalization: `weight_g` and `weight_v`, or `parametrizations.weight.original0` and `original1`,
  W = g · v / ‖v‖, the norm over the axes where g has one number (https://arxiv.org/abs/1602.07868).
* Spectral normalization: `weight_orig`, `weight_u` and `weight_v`, or `parametrizations.weight.original`, `0._u` and
  `0._v`, W = W_orig / (uᵀ W_orig v), W_orig with one row for each output (https://arxiv.org/abs/1802.05957).

A norm without scale and shift (`affine=False`) has those of 1 and 0.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from torch import nn


def _masked(weight: Any, mask: Any) -> Any:
    return weight * mask


def _normalized(length: Any, direction: Any) -> Any:
    axes = tuple(axis for axis, size in enumerate(length.shape) if size == 1) if length.ndim else None
    return direction * (length / (direction * direction).sum(axis=axes, keepdims=True) ** 0.5)


def _spectral(weight: Any, left: Any, right: Any) -> Any:
    return weight / (left @ (weight.reshape(len(left), -1) @ right))


_RULES: Final[tuple[tuple[tuple[str, ...], Callable[..., Any]], ...]] = (
    (("{}_orig", "{}_mask"), _masked),
    (("{}_g", "{}_v"), _normalized),
    (("parametrizations.{}.original0", "parametrizations.{}.original1"), _normalized),
    (("{}_orig", "{}_u", "{}_v"), _spectral),
    (("parametrizations.{}.original", "parametrizations.{}.0._u", "parametrizations.{}.0._v"), _spectral),
)
"""Names of the tensors that one is computed of, and how."""

_SIGNS: Final = ("{}_u", "parametrizations.{}.0._u", "{}_g", "parametrizations.{}.original0", "{}_orig")
"""Of those, which make the opposite if they are negated: W / (uᵀ W v) stays the same with -W."""

_COMPUTED: Final = ("weight", "bias")
_VARIANCE: Final = ".running_var"
_OF_BACKBONE: Final = re.compile(r"(.*\.)?(norm\d|denseblock\d+|transition\d+)(\..*)?", re.DOTALL)


def with_computed_weights(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `tensors` with each group replaced by the weight that it stands for, and the names of these weights."""
    plain, computed = dict(tensors), []
    for name in tensors:
        for sources, weight, compute in _rules_for(name):
            parts = [plain.get(source) for source in sources]
            if weight not in tensors and all(hasattr(part, "ndim") for part in parts):
                changes = {sources[0]: (weight, compute(*parts)), **dict.fromkeys(sources[1:])}
                plain = _replaced(plain, changes)
                computed.append(weight)
    return plain, tuple(computed)


def name_of_sign(weight: str, names: Collection[str]) -> str:
    """Return which of `names` to negate for the opposite of `weight`: of tensors that it is computed of, one."""
    root, _, kind = weight.rpartition(".")
    signs = (f"{root}.{sign.format(kind)}".removeprefix(".") for sign in _SIGNS)
    return weight if weight in names else next((name for name in signs if name in names), weight)


def with_affine_norms(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `tensors` with scales of 1 and shifts of 0 for norms that have none, and the names of these norms.

    Where other norms of the stem, the blocks and the transitions have their own, one without lost it: it stays.
    """
    norms = [name.removesuffix(_VARIANCE) for name in tensors if name.endswith(_VARIANCE)]
    bare = [norm for norm in norms if not {f"{norm}.weight", f"{norm}.bias"} & tensors.keys()]
    inner = [norm for norm in norms if _OF_BACKBONE.fullmatch(norm)]
    filled = [norm for norm in bare if norm not in inner or set(inner) <= set(bare)]
    plain = dict(tensors)
    for norm in filled:
        variance = tensors[f"{norm}{_VARIANCE}"]
        plain |= {f"{norm}.weight": _filled(variance, 1.0), f"{norm}.bias": _filled(variance, 0.0)}
    return plain, tuple(filled)


def without_parametrizations(module: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy of `module` that holds the weights which it computes in eval mode, and how many these are.

    Without such weights, and if its own code does not let them go, `module` itself is returned.
    """
    from torch.nn.utils.parametrize import is_parametrized

    if not any(is_parametrized(layer) or _hooks(layer) for layer in module.modules()):
        return module, 0
    folded = copied(module).eval()
    try:
        return folded, sum(_fold_hooks(layer) + _fold_parametrizations(layer) for layer in list(folded.modules()))
    except Exception:  # noqa: BLE001 - any code may compute weights, and the module computes the same as it is
        return module, 0


def _hooks(layer: nn.Module) -> dict[int, Any]:
    """The hooks by key that compute a weight before every call."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    kinds = (BasePruningMethod, SpectralNorm, WeightNorm)
    found = layer._forward_pre_hooks.items()  # noqa: SLF001 - PyTorch shows them nowhere else
    return {key: hook for key, hook in found if isinstance(hook, kinds)}


def _fold_hooks(layer: nn.Module) -> int:
    found = _hooks(layer)
    for key, hook in found.items():
        hook.remove(layer)
        del layer._forward_pre_hooks[key]  # noqa: SLF001
    return len(found)


def _fold_parametrizations(layer: nn.Module) -> int:
    """Give `layer` its class and weights back; the class that computes them is the original's, too."""
    import torch
    from torch.nn.utils.parametrize import is_parametrized

    if not is_parametrized(layer):
        return 0
    with torch.no_grad():
        values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # type: ignore[union-attr]
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name, value in values.items():
        layer.register_parameter(name, torch.nn.Parameter(value, requires_grad=value.is_floating_point()))
    return len(values)


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy; a weight that was computed in training, which PyTorch does not copy, as its value."""
    import torch

    values = (value for layer in module.modules() for value in vars(layer).values() if isinstance(value, torch.Tensor))
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in values if not value.is_leaf})


def _filled(like: Any, value: float) -> Any:
    return np.full_like(like, value) if isinstance(like, np.ndarray) else like.new_full(like.shape, value)


def _rules_for(name: str) -> Iterator[tuple[tuple[str, ...], str, Callable[..., Any]]]:
    """Yield the rules whose first tensor is `name`, with full names."""
    for kind in _COMPUTED:
        for sources, compute in _RULES:
            root = name.removesuffix(sources[0].format(kind))
            if root != name and (not root or root.endswith(".")):
                yield tuple(root + source.format(kind) for source in sources), root + kind, compute


def _replaced(tensors: Mapping[str, Any], changes: Mapping[str, tuple[str, Any] | None]) -> dict[str, Any]:
    """Return `tensors` in their order, with other names and values where `changes` has some, without those of None."""
    kept = {name: changes.get(name, (name, value)) for name, value in tensors.items()}
    return dict(pair for pair in kept.values() if pair is not None)

"""Names for what a module returns: one tensor, or tensors in tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor
from torch.utils import _pytree as pytree

DEFAULT_NAME: Final = "logits"


def output_names(result: object) -> tuple[str, ...]:
    """Return one name per tensor of `result`, in order: a key where it has one, else its place.

    >>> import torch
    >>> output_names(torch.zeros(1)), output_names({"a": torch.zeros(1), "b": [torch.zeros(1)]})
    (('logits',), ('a', 'b_0'))
    """
    leaves, _ = pytree.tree_flatten_with_path(result)
    return tuple(_name(path) for path, leaf in leaves if isinstance(leaf, Tensor))


def names_of_structure(spec: pytree.TreeSpec) -> tuple[str, ...]:
    """Return the names of the leaves of a pytree, as `output_names` gives them."""
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten([0] * spec.num_leaves, spec))
    return tuple(_name(path) for path, _ in leaves)


def _name(path: Sequence[Any]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    if not parts:
        return DEFAULT_NAME
    return "_".join(parts) if not parts[0].isdigit() else "_".join(("output", *parts))

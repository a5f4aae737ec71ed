"""Names for the tensors that a module returns: one alone, or several in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils import _pytree as pytree

DEFAULT_NAME: Final = "logits"


def output_names(result: object) -> tuple[str, ...]:
    """Return one name per tensor of `result`, in order: its key where it has one, else its place.

    >>> import torch
    >>> output_names(torch.zeros(1)), output_names({"a": torch.zeros(1), "b": [torch.zeros(1)]})
    (('logits',), ('a', 'b_0'))
    """
    from torch import Tensor
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten_with_path(result)
    return tuple(_name(path) for path, leaf in leaves if isinstance(leaf, Tensor))


def named_tensors(result: object, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of `result` by name: by `names` if there are as many, else as `output_names` has them."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return dict(zip(names if len(names) == len(tensors) else output_names(result), tensors, strict=True))


def names_of_structure(spec: pytree.TreeSpec) -> tuple[str, ...]:
    """Return the names of the leaves of a pytree, as `output_names` gives them."""
    from torch.utils import _pytree as pytree

    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten([0] * spec.num_leaves, spec))
    return tuple(_name(path) for path, _ in leaves)


def _name(path: Sequence[Any]) -> str:
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
    if not parts:
        return DEFAULT_NAME
    return "_".join(parts) if not parts[0].isdigit() else "_".join(("output", *parts))

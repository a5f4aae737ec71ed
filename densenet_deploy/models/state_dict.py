"""What a checkpoint holds to plain float32 weights under torchvision's names.

Training code wraps weights: in a dictionary (`state_dict`, `model`), in a prefix (`module.` of DataParallel,
`_orig_mod.` of torch.compile, `ema.`), in torchvision's first naming (`norm.1`). Each is undone with a note, and so is
what lies beside the weights without being a tensor (an epoch, an optimizer); tensors that are no weights are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.checkpoint_file import CheckpointFile
from densenet_deploy.models.checkpoint_zip import INFLATION_LIMIT

COUNTER: Final = ".num_batches_tracked"
"""How many batches a norm saw in training: not a weight, and absent from old checkpoints."""

_WRAPPERS: Final = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema"),  # averages, where they are all there is
)
_AVERAGES: Final = "n_averaged"  # how many models an AveragedModel has seen
_MOST_NAMES: Final = 5
_DEEPEST_WRAPPING: Final = 4  # a pickled dictionary may contain itself
_PREFIXES: Final = re.compile(r"^(?:(?:module|model|net|network|densenet|_orig_mod|backbone|ema|ema_model)\.)+")
_OLD_NAME: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Weights:
    """float32 tensors by name, without batch counters, and what was done to get them (one line each)."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, as `spec_from_shapes` reads them."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def weights_from(file: CheckpointFile) -> Weights:
    """Return the weights that a checkpoint holds.

    Raises:
        CheckpointError: if it holds none, or a tensor is sparse, quantized, without data, or not of floating point.
    """
    mapping, opened = _unwrap(file.content)
    named = _named(file.path, mapping)
    tensors = {name: _dense(file.path, name, value) for name, value in named.items() if isinstance(value, Tensor)}
    opened += _ignoring_note(name for name in named if name not in tensors)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > INFLATION_LIMIT * file.size_bytes:
        why = f"its tensors need {total} bytes, over {INFLATION_LIMIT} times the file's {file.size_bytes}"
        raise CheckpointError(file.path, why, "do not use it; get the checkpoint from its author")
    names = {name: _plain_name(name) for name in tensors}
    _refuse_collision(file.path, names)
    notes = (*opened, *_renaming_note(names), *_casting_note(tensors.values()))
    plain = {names[name]: tensor.detach().to(torch.float32, copy=True) for name, tensor in tensors.items()}
    return Weights({name: tensor.contiguous() for name, tensor in plain.items()}, notes)


def require_finite(subject: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError that names the first tensor with NaN or Inf, and counts such values."""
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors.items()}
    bad = [name for name, count in counts.items() if count]
    if bad:
        why = f"NaN or Inf stand at {sum(counts.values())} places in {len(bad)} of its tensors, the first {bad[0]}"
        raise CheckpointError(subject, why, "train again, or keep them with --allow-nonfinite")


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, shapes and values in the order of names, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.endswith(COUNTER):
            digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
            digest.update(tensors[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _unwrap(content: object) -> tuple[object, tuple[str, ...]]:
    """(the innermost wrapped dictionary, notes on the way to it and on what was left beside it)."""
    path: list[str] = []
    beside: list[str] = []
    while isinstance(content, Mapping) and len(path) < _DEEPEST_WRAPPING:
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        path.append(key)
        beside += [str(other) for other in content if other != key]
        content = content[key]
    found = (f"weights found under {' → '.join(path)}",) if path else ()
    return content, (*found, *_ignoring_note(beside))


def _named(path: Path, mapping: object) -> dict[str, object]:
    """The named entries of a state dict, without counters."""
    if not isinstance(mapping, Mapping) or not any(isinstance(value, Tensor) for value in mapping.values()):
        raise CheckpointError(path, "holds no dictionary of tensors", "give a state_dict")
    named = {str(name): value for name, value in mapping.items()}
    return {name: value for name, value in named.items() if not name.endswith(COUNTER) and name != _AVERAGES}


def _ignoring_note(names: Iterable[str]) -> tuple[str, ...]:
    known = list(names)
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return (f"ignored beside the weights: {', '.join(known[:_MOST_NAMES])}{more}",) if known else ()


def _dense(path: Path, name: str, value: Tensor) -> Tensor:
    """Return `value` if it is an ordinary tensor of floating point."""
    kinds = {"quantized": value.is_quantized, "sparse": value.layout is not torch.strided, "meta": value.is_meta}
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind is not None:
        raise CheckpointError(path, f"{name} is a {kind} tensor", "save dense float weights")
    if value.dtype not in _FLOATS:
        raise CheckpointError(path, f"{name} has the type {_type_name(value)}", "save float weights")
    return value


def _plain_name(name: str) -> str:
    return _OLD_NAME.sub(r"\1\2", _PREFIXES.sub("", name))


def _refuse_collision(path: Path, names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for name, plain in names.items():
        if plain in seen:
            raise CheckpointError(path, f"{seen[plain]} and {name} are both {plain}", "save one model only")
        seen[plain] = name


def _renaming_note(names: Mapping[str, str]) -> tuple[str, ...]:
    changed = [(name, plain) for name, plain in names.items() if name != plain]
    return (f"{len(changed)} parameters renamed, such as {changed[0][0]} to {changed[0][1]}",) if changed else ()


def _casting_note(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    types = sorted({_type_name(tensor) for tensor in tensors} - {"float32"})
    return (f"{' and '.join(types)} weights cast to float32",) if types else ()


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

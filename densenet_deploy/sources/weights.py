"""From a checkpoint's content to a DenseNet that holds its weights: unwrap, rename, convert, fit.

Training code wraps weights: in a dictionary (`state_dict`, `model`), in prefixes (`module.` of DataParallel,
`_orig_mod.` of torch.compile, `ema.`), in another library's names. Each is undone with a note, and a note names what
lies beside the weights without being a tensor (an epoch, an optimizer). Tensors that cannot be weights are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources.checkpoint_file import INFLATION_LIMIT, CheckpointFile
from densenet_deploy.sources.source import formats
from densenet_deploy.variants import Variant, closest_variant
from densenet_deploy.variants.infer import Shapes, spec_from_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from densenet_deploy.models.build import DenseNet

COUNTER: Final = ".num_batches_tracked"
"""How many batches a norm saw in training: not a weight, and missing from old checkpoints."""

_WRAPPERS: Final = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema"),  # averages, if they are all there is
)
_PREFIXES: Final = re.compile(r"^(?:(?:module|model|net|network|densenet|_orig_mod|backbone|ema|ema_model)\.)+")
_AVERAGES: Final = "n_averaged"  # how many models an AveragedModel averages
_DEEPEST_WRAPPING: Final = 4  # a pickled dictionary may contain itself
_LISTED: Final = 5
_FLOATS: Final = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Weights:
    """float32 tensors by torchvision's names, without batch counters.

    `facts` are what the format knows about images and outputs; `notes` say what was done, one sentence each.
    """

    tensors: dict[str, Tensor]
    facts: ModelFacts
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, as `spec_from_shapes` reads them."""
        return shapes_of(self.tensors)


def weights_from(file: CheckpointFile) -> Weights:
    """Return the weights that a checkpoint holds.

    Raises:
        CheckpointError: if it holds none, or a tensor is sparse, quantized, without data, or not of floating point.
    """
    mapping, opened = _unwrapped(file.content)
    named = _named(file.path, mapping)
    tensors = {name: _dense(file.path, name, value) for name, value in named.items() if isinstance(value, _tensor())}
    opened += _ignoring_note(name for name in named if name not in tensors)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > INFLATION_LIMIT * file.size_bytes:
        why = f"its tensors need {total} bytes, over {INFLATION_LIMIT} times the file's {file.size_bytes}"
        raise CheckpointError(file.path, why, "do not use it; get the checkpoint from its author")
    names, facts = canonical_names(tensors)
    _refuse_collision(file.path, names)
    opened += _ignoring_note(name for name in tensors if name not in names)
    notes = (*opened, *_renaming_note(names), *casting_note(tensors[name] for name in names))
    return Weights(_float32({plain: tensors[name] for name, plain in names.items()}), facts, notes)


def canonical_names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], ModelFacts]:
    """Return name → torchvision name of what is part of the network, and what its format knows about it."""
    plain = {name: _PREFIXES.sub("", name) for name in tensors}
    for kind in formats.items().values():
        if (known := kind()).recognises(plain.values()):
            renamed = known.renames(plain.values())
            names = {name: renamed.get(short, short) for name, short in plain.items()}
            facts = known.facts({plain[name]: tensor for name, tensor in tensors.items()})
            return {name: new for name, new in names.items() if new is not None}, facts
    return plain, ModelFacts()


def fitted_model(subject: object, variant: Variant, tensors: Mapping[str, Tensor]) -> DenseNet:
    """Return the network of `variant` in eval mode, holding exactly `tensors`; batch counters start at 0.

    Raises:
        CheckpointError: naming at most five parameters that do not fit, and the variant that the weights look like.
    """
    import torch

    from densenet_deploy.models.build import empty_model

    model = empty_model(variant.spec)
    required = {name: shape for name, shape in shapes_of(model.state_dict()).items() if not name.endswith(COUNTER)}
    found = shapes_of(tensors)
    if misfits := _misfits(required, found):
        raise _misfit_error(subject, variant, misfits, found)
    counters = {name: torch.tensor(0) for name in model.state_dict() if name.endswith(COUNTER)}
    model.load_state_dict({**tensors, **counters}, assign=True)
    return model


def require_finite(subject: object, tensors: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError that names the first tensor with NaN or Inf, and counts such values."""
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    bad = [name for name, count in counts.items() if count]
    if bad:
        why = f"holds {sum(counts.values())} NaN or Inf values in {len(bad)} of its tensors, the first {bad[0]}"
        raise CheckpointError(subject, why, "train again, or accept them with --allow-nonfinite")


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of names, shapes and values in the order of names, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.endswith(COUNTER):
            digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
            digest.update(tensors[name].detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return name → shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _tensor() -> type[Tensor]:
    import torch

    return torch.Tensor


def _unwrapped(content: object) -> tuple[object, tuple[str, ...]]:
    """(the innermost wrapped dictionary, notes on the way to it and on what was ignored beside it)."""
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
    if not isinstance(mapping, Mapping) or not any(isinstance(value, _tensor()) for value in mapping.values()):
        raise CheckpointError(path, "does not hold a dictionary of tensors", "give a state_dict")
    named = {str(name): value for name, value in mapping.items()}
    return {name: value for name, value in named.items() if not name.endswith(COUNTER) and name != _AVERAGES}


def _ignoring_note(names: Iterable[str]) -> tuple[str, ...]:
    known = list(names)
    return (f"ignored beside the weights: {_listed(known)}",) if known else ()


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{', '.join(items[:_LISTED])}{more}"


def _dense(path: Path, name: str, value: Tensor) -> Tensor:
    """Return `value` if it is an ordinary tensor of floating point."""
    import torch

    kinds = {"quantized": value.is_quantized, "sparse": value.layout is not torch.strided, "meta": value.is_meta}
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind is not None:
        raise CheckpointError(path, f"{name} is a {kind} tensor", "save dense float weights")
    if _type_name(value) not in _FLOATS:
        raise CheckpointError(path, f"{name} has the type {_type_name(value)}", "save float weights")
    return value


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous float32 tensors, each the only one in its storage; a copy is made only where it has to be."""
    import torch

    plain, storages = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        owns = storage.nbytes() == tensor.nbytes and tensor.is_contiguous() and storage.data_ptr() not in storages
        if tensor.dtype is torch.float32 and owns:
            storages.add(storage.data_ptr())
            plain[name] = tensor.detach()
        else:
            plain[name] = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return plain


def _refuse_collision(path: Path, names: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, plain in names.items():
        if plain in first:
            raise CheckpointError(path, f"{first[plain]} and {name} are both {plain}", "save one model only")
        first[plain] = name


def _renaming_note(names: Mapping[str, str]) -> tuple[str, ...]:
    changed = [(name, plain) for name, plain in names.items() if name != plain]
    return (f"{len(changed)} parameters renamed, such as {changed[0][0]} to {changed[0][1]}",) if changed else ()


def casting_note(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the note about float `tensors` of other types that become float32, if there are any."""
    types = sorted({_type_name(tensor) for tensor in tensors} - {"float32"})
    return (f"{' and '.join(types)} weights cast to float32",) if types else ()


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _misfits(required: Shapes, found: Shapes) -> list[str]:
    missing = [f"{name} is missing" for name in required if name not in found]
    unexpected = [f"{name} is unexpected" for name in found if name not in required]
    reshaped = [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in required.items()
        if name in found and found[name] != shape
    ]
    return missing + unexpected + reshaped


def _misfit_error(subject: object, variant: Variant, misfits: list[str], found: Shapes) -> CheckpointError:
    why = f"does not fit {variant.artifact_name}: {_listed(misfits)}"
    try:
        spec = spec_from_shapes(found)
    except CheckpointError as exc:
        return CheckpointError(subject, why, f"it does not look like a DenseNet ({exc.why}): give another file")
    likeness = closest_variant(spec)
    if spec.same_architecture(variant.spec):
        return CheckpointError(subject, why, "it is incomplete or was changed: save the whole state_dict again")
    return CheckpointError(subject, why, f"it looks like {likeness.artifact_name}: check --variant and the file")

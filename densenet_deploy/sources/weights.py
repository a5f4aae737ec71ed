"""From a checkpoint's content to a DenseNet that holds its weights: found, renamed, converted, fitted.

Training code wraps weights in dictionaries, in prefixes, and in another library's names (`networks`, `layout`). Each is
undone with a note, and a note names what lies beside the weights without being part of the network (an epoch, an
optimizer, a metric). Tensors that cannot be weights are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import numpy as np

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.models.operations import parameter_shapes
from densenet_deploy.packages import imported
from densenet_deploy.sources.arrays import Array, array_of
from densenet_deploy.sources.checkpoint_file import INFLATION_LIMIT, CheckpointFile
from densenet_deploy.sources.class_names import class_names_in
from densenet_deploy.sources.config_file import WeightsConfig
from densenet_deploy.sources.heads import WAY_OUT, is_unused
from densenet_deploy.sources.layout import Layout, chosen_network, layout_of, network_layout
from densenet_deploy.sources.networks import FoundNetwork, dictionaries_in, entries_of
from densenet_deploy.variants import Variant, closest_variant
from densenet_deploy.variants.infer import Shapes, spec_from_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from densenet_deploy.models.build import DenseNet

COUNTER: Final = ".num_batches_tracked"
"""How many batches a norm saw in training: not a weight, and missing from old checkpoints."""

_AVERAGES: Final = "n_averaged"  # how many models an AveragedModel averages
_VARIANCE: Final = ".running_var"
_WEIGHT: Final = re.compile(r"(.*\.)?(weight|bias|running_mean|running_var)", re.DOTALL)
_PARAMETRIZED: Final = re.compile(r"(^|\.)parametrizations\.")
_QUANTIZED: Final = re.compile(r"fake_quant|(^|\.)activation_post_process(_\d+)?\.|(^|\.)_packed_params(\.|$)")
_STATISTICS: Final = (".running_mean", ".running_var")
_LISTED: Final = 5
_UNEXPECTED: Final = "is unexpected"
_RESHAPED: Final = "has shape"
_FLOATS: Final = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Weights:
    """float32 tensors by our names, without batch counters: PyTorch's or NumPy arrays, as the file gave them.

    `layout` says what was read from the names; `facts` are those that names and file state about images and outputs;
    `notes` say what was done, one sentence each.
    """

    tensors: dict[str, Tensor | Array]
    layout: Layout
    facts: ModelFacts
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, as `spec_from_shapes` reads them."""
        return shapes_of(self.tensors)

    def described_by(self, config: WeightsConfig) -> Weights:
        """Return the same weights with the facts of the file beside them, which win."""
        facts = dataclasses.replace(self.facts, **config.facts.given())
        return dataclasses.replace(self, facts=facts, notes=(*self.notes, *config.notes))


def weights_from(file: CheckpointFile, *, is_ours: bool = False, key: str | None = None) -> Weights:
    """Return the weights that a checkpoint holds; a file that this package wrote (`is_ours`) has our names.

    Of several networks, `key` names one.

    Raises:
        CheckpointError: if it holds none, several networks, or a tensor that is sparse, quantized, without data, or not
            of floating point.
    """
    try:
        return _weights_from(file, is_ours=is_ours, key=key)
    except CheckpointError as exc:
        if exc.subject != "weights":
            raise
        raise CheckpointError(file.path, exc.why, exc.fix) from exc


def _weights_from(file: CheckpointFile, *, is_ours: bool, key: str | None) -> Weights:
    network, others = chosen_network(file.content, key)
    keys, mapping = (network.keys, network.tensors) if network is not None else _any_dictionary(file)
    named = {str(name): value for name, value in mapping.items() if not _is_counter(str(name))}
    tensors = dict(_dense_tensors(file.path, named, network.short_name if network is not None else str))
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > INFLATION_LIMIT * file.size_bytes:
        why = f"its tensors need {total} bytes, over {INFLATION_LIMIT} times the file's {file.size_bytes}"
        raise CheckpointError(file.path, why, "do not use it; get the checkpoint from its author")
    _refuse_unknown_forward(file.path, named)
    if is_ours:
        layout = Layout.ours(tensors)
    elif network is None:
        layout = layout_of(tensors)
    else:
        layout = network_layout(FoundNetwork(keys, tensors, network.prefix, network.is_bare), others)
    classes = class_names_in(file.content, keys)
    beside = (name for name in _beside(file.content, keys) if name != classes.key)
    known = {*layout.names, *layout.read, classes.key}
    unused = [name for name in named if name not in known]
    notes = (
        *((f"weights found under {' → '.join(keys)}",) if keys else ()),
        *_ignoring_note("beside the weights", beside),
        *_ignoring_note("as not part of the network", unused),
        *_computing_note(network),
        *_renaming_note(layout.names),
        *casting_note(tensors[name] for name in layout.names),
        *layout.notes,
        *classes.notes,
    )
    plain = _float32(layout.arranged(tensors))
    facts = dataclasses.replace(layout.facts, labels=classes.names) if classes.names else layout.facts
    return Weights(plain, layout, facts, notes)


def _refuse_unknown_forward(path: Path, names: Iterable[str]) -> None:
    """Refuse weights that code computes before or after every call, where only that code knows how."""
    for name in names:
        if _PARAMETRIZED.search(name):
            why = f"{name} is one of a parametrization that is neither a weight norm nor a spectral norm"
            fix = "load the module itself, densenet_deploy.load(module), or remove it first: remove_parametrizations"
            raise CheckpointError(path, why, fix)
        if _QUANTIZED.search(name):
            how = "quantized" if "_packed_params" in name else "prepared for quantization"
            why = f"is {how} by PyTorch: {name} is not part of a float network"
            fix = "give the .onnx file that torch.onnx.export writes of it, or float weights, and quantize those"
            raise CheckpointError(path, why, fix)


def _any_dictionary(file: CheckpointFile) -> tuple[tuple[str, ...], Mapping[Any, Any]]:
    """The dictionary with the most tensors of a file without a DenseNet, which is refused when its shapes are read."""
    found = list(dictionaries_in(file.content))
    if not any(_is_tensor(value) for _, mapping in found for value in mapping.values()):
        raise CheckpointError(file.path, "does not hold a dictionary of tensors", "give a state_dict")
    return max(found, key=lambda item: len(item[1]))


def _is_counter(name: str) -> bool:
    return name.endswith(COUNTER) or name.rpartition(".")[2] == _AVERAGES


def _dense_tensors(
    path: Path, named: Mapping[str, Any], short_name: Callable[[str], str]
) -> Iterator[tuple[str, Tensor | Array]]:
    """Yield the tensors that may be weights: not those of losses and metrics, nor whole numbers under other names."""
    for name, value in named.items():
        if not _is_tensor(value) or is_unused(short_name(name)):
            continue
        if "float" in _type_name(value) or _is_quantized(value) or _WEIGHT.fullmatch(name):
            yield name, _dense(path, name, value)


def _beside(content: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of what lies beside the weights on the way to them."""
    for key in keys:
        entries = entries_of(content)
        yield from (other for other in entries if other != key)
        content = entries[key]


def require_fit(subject: object, variant: Variant, tensors: Mapping[str, Tensor | Array]) -> None:
    """Check that `tensors` are those of `variant`, neither more nor less.

    Raises:
        CheckpointError: naming at most five parameters that do not fit, and the variant that the weights look like.
    """
    found = shapes_of(tensors)
    if misfits := _misfits(parameter_shapes(variant.spec), found):
        raise _misfit_error(subject, variant, misfits, found)


def fitted_model(subject: object, variant: Variant, tensors: Mapping[str, Tensor | Array]) -> DenseNet:
    """Return the network of `variant` in eval mode, holding exactly `tensors`, arrays as copies; counters start at 0.

    Raises:
        CheckpointError: as `require_fit`.
    """
    import torch

    from densenet_deploy.models.build import loaded_model

    require_fit(subject, variant, tensors)
    norms = (name.removesuffix(_VARIANCE) for name in tensors if name.endswith(_VARIANCE))
    counters = {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms}
    own = {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in tensors.items()}
    return loaded_model(variant.spec, {**own, **counters})


def copied(tensors: Mapping[str, Tensor | Array]) -> dict[str, Tensor | Array]:
    """Return `tensors` in memory of their own, on the CPU."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value.detach().to("cpu", copy=True)
        for name, value in tensors.items()
    }


def weights_of(module: DenseNet) -> dict[str, Array]:
    """Return the weights of a network of ours by name, without batch counters; those on the CPU share its memory."""
    return {name: array_of(tensor) for name, tensor in module.state_dict().items() if not name.endswith(COUNTER)}


def require_numbers(subject: object, tensors: Mapping[str, Tensor | Array]) -> None:
    """Require weights that are finite, and variances that are not negative.

    Raises:
        CheckpointError: naming the first tensor with others, and counting them.
    """
    fix = "train again, or accept them with --allow-nonfinite"
    arrays = {name: array_of(tensor) for name, tensor in tensors.items()}
    total, names = _counted({name: ~np.isfinite(array) for name, array in arrays.items()})
    if names:
        why = f"holds {total} NaN or Inf values in {len(names)} of its tensors, the first {names[0]}"
        raise CheckpointError(subject, why, fix)
    total, names = _counted({name: array < 0 for name, array in arrays.items() if name.endswith(_VARIANCE)})
    if names:
        why = f"holds {total} negative variances in {len(names)} of its norms, the first {names[0]}"
        raise CheckpointError(subject, why, "save the weights again, they are damaged")


def _counted(marks: Mapping[str, Array]) -> tuple[int, list[str]]:
    """(how many marks there are, the names of those with some)."""
    counts = {name: int(np.count_nonzero(marked)) for name, marked in marks.items()}
    return sum(counts.values()), [name for name, count in counts.items() if count]


def weights_sha256(tensors: Mapping[str, Tensor | Array]) -> str:
    """Return the SHA-256 (hex) of names, shapes and values in the order of names, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.endswith(COUNTER):
            digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
            digest.update(array_of(tensors[name]).data)
    return digest.hexdigest()


def shapes_of(tensors: Mapping[str, Tensor | Array]) -> dict[str, tuple[int, ...]]:
    """Return name → shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _is_tensor(value: object) -> TypeGuard[Tensor | Array]:
    torch = imported("torch")  # a tensor of PyTorch can only be there if that is
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def _is_quantized(value: Tensor | Array) -> bool:
    return not isinstance(value, np.ndarray) and value.is_quantized


def _ignoring_note(why: str, names: Iterable[str]) -> tuple[str, ...]:
    known = list(names)
    return (f"ignored {why}: {_listed(known)}",) if known else ()


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{', '.join(items[:_LISTED])}{more}"


def _dense(path: Path, name: str, value: Tensor | Array) -> Tensor | Array:
    """Return `value` if it is an ordinary tensor of floating point."""
    kind = None if isinstance(value, np.ndarray) else _special_kind(value)
    if kind is not None:
        raise CheckpointError(path, f"{name} is a {kind} tensor", "save dense float weights")
    if _type_name(value) not in _FLOATS:
        raise CheckpointError(path, f"{name} has the type {_type_name(value)}", "save float weights")
    return value


def _special_kind(value: Tensor) -> str | None:
    import torch

    kinds = {"quantized": value.is_quantized, "sparse": value.layout is not torch.strided, "meta": value.is_meta}
    return next((kind for kind, found in kinds.items() if found), None)


def _float32(tensors: Mapping[str, Tensor | Array]) -> dict[str, Tensor | Array]:
    """Return contiguous float32 tensors, each the only one in its storage; a copy is made only where it has to be.

    An array, which nobody writes to, may share its storage.
    """
    plain: dict[str, Tensor | Array] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            plain[name] = np.asarray(tensor, np.float32, order="C")
            continue
        import torch

        storage = tensor.untyped_storage()
        owns = storage.nbytes() == tensor.nbytes and tensor.is_contiguous() and storage.data_ptr() not in storages
        if tensor.dtype is torch.float32 and owns:
            storages.add(storage.data_ptr())
            plain[name] = tensor.detach()
        else:
            plain[name] = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return plain


def _computing_note(network: FoundNetwork | None) -> tuple[str, ...]:
    computed, filled = (len(network.computed), len(network.filled)) if network is not None else (0, 0)
    notes = (computing_note(computed), f"{filled} norms without scale and shift: 1 and 0" if filled else "")
    return tuple(filter(None, notes))


def computing_note(count: int) -> str:
    """Return the note about `count` weights that others stand for; nothing of none."""
    return f"{count} weights computed from pruning masks, weight norms or other parametrizations" if count else ""


def _renaming_note(names: Mapping[str, str]) -> tuple[str, ...]:
    changed = [(name, plain) for name, plain in names.items() if name != plain]
    return (f"{len(changed)} parameters renamed, such as {changed[0][0]} to {changed[0][1]}",) if changed else ()


def casting_note(tensors: Iterable[Tensor | Array]) -> tuple[str, ...]:
    """Return the note about float `tensors` of other types that become float32, if there are any."""
    types = sorted({_type_name(tensor) for tensor in tensors} - {"float32"})
    return (f"{' and '.join(types)} weights cast to float32",) if types else ()


def _type_name(tensor: Tensor | Array) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _misfits(required: Shapes, found: Shapes) -> list[str]:
    missing = [f"{name} is missing" for name in required if name not in found]
    unexpected = [f"{name} {_UNEXPECTED}" for name in found if name not in required]
    reshaped = [
        f"{name} {_RESHAPED} {found[name]}, not {shape}"
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
    statistics = [name for name in found if name.endswith(_STATISTICS)]
    if not statistics:
        why = f"does not fit {variant.artifact_name}: its norms have no running mean and variance"
        return CheckpointError(subject, f"{why}, as GroupNorm and InstanceNorm have none", WAY_OUT)
    likeness = closest_variant(spec)
    if all(misfit.endswith(_UNEXPECTED) for misfit in misfits):
        return CheckpointError(subject, why, WAY_OUT)
    if spec.same_architecture(variant.spec):
        fix = "it is incomplete or was changed: save the whole state_dict again"
        is_changed = any(_RESHAPED in misfit for misfit in misfits)
        return CheckpointError(subject, why, f"{fix}; if layers were changed, {WAY_OUT}" if is_changed else fix)
    return CheckpointError(subject, why, f"it looks like {likeness.artifact_name}: check --variant and the file")

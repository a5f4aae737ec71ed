"""From the names of any state dict to ours: wrapping stripped, a library's names translated, the head recognized.

What cannot be read from names and shapes is assumed, and said: `Layout.assumed`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.heads import WAY_OUT, Head, HeadConventions, head_from, is_unused
from densenet_deploy.sources.networks import FEATURES, FoundNetwork, networks_in, unwrapped
from densenet_deploy.sources.source import CheckpointFormat, formats
from densenet_deploy.variants.infer import Shapes, spec_from_shapes
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    from torch import Tensor

_BACKBONE: Final = re.compile(r"features\.(conv[0-2]|norm[0-25]|denseblock\d{1,3}|transition\d{1,3})\.")
_STEM: Final = "features.conv0.weight"
_LAST_NORM: Final = "features.norm5"
_CLASSIFIER: Final = "classifier.weight"
_LISTED: Final = 5


@dataclass(frozen=True)
class Layout:
    """Where the parameters of a DenseNet lie in a state dict.

    Attributes:
        names: our name of each tensor that is part of the network.
        head: what stands behind the last dense block.
        facts: what the names say about images and outputs.
        assumed: what of the head the weights do not show, as phrases.
        unused: names of tensors that are not part of the network.
        read: those among them that `facts` come from.
        notes: remarks of the library's format.
        finish: what the library's module makes of the network's outputs; None if it returns them.
    """

    names: Mapping[str, str]
    head: Head
    facts: ModelFacts = field(default_factory=ModelFacts)
    unused: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    finish: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def ours(cls, names: Iterable[str]) -> Layout:
        """Return the layout of a network of ours, whose spec is known from elsewhere."""
        return cls({name: name for name in names}, Head())

    def spec(self, shapes: Shapes) -> DenseNetSpec:
        """Return the spec of the network whose tensors have these `shapes` under our names.

        Raises:
            CheckpointError: if they are not those of a DenseNet.
        """
        spec = spec_from_shapes(shapes)
        return dataclasses.replace(spec, **self.ends)

    def arranged(self, tensors: Mapping[str, Tensor | Array]) -> dict[str, Tensor | Array]:
        """Return the network's `tensors` by our names; the kernel (C, F, 1, 1) of a classifier as a matrix (C, F)."""
        found = {new: tensors[old] for old, new in self.names.items()}
        weight = found.get(_CLASSIFIER)
        return found if weight is None or weight.ndim != 4 else {**found, _CLASSIFIER: weight.reshape(weight.shape[:2])}

    @property
    def ends(self) -> dict[str, Any]:
        """Everything about the head, by the names of the spec's fields."""
        head = self.head
        ends = {"head": head.head, "hidden": head.hidden, "bias": head.bias, "pooling": head.pooling}
        return ends if head.num_classes is None else {**ends, "num_classes": head.num_classes}


def layout_of(tensors: Mapping[str, Tensor | Array]) -> Layout:
    """Return the layout of the DenseNet among `tensors`; where there is none, names without their common prefix.

    Raises:
        CheckpointError: if there are several, or what stands beside the stem and the blocks is not understood.
    """
    network, others = chosen_network(tensors)
    if network is not None:
        return network_layout(network, others)
    whole = FoundNetwork((), tensors, _common_prefix(tensors))
    short = {name: whole.short_name(name) for name in tensors}
    if _STEM in _translated({short[name]: tensor for name, tensor in tensors.items()}).names.values():
        return network_layout(whole)  # a format that has a name of its own for the stem
    return Layout(short, Head())


def chosen_network(content: object, key: str | None = None) -> tuple[FoundNetwork | None, tuple[FoundNetwork, ...]]:
    """Return (the DenseNet that `content` holds, those that were not taken); None where there is none.

    Beside the weights of training, averages of them and teachers are not taken, unless `key` names one.

    Raises:
        CheckpointError: naming them, if there are several, or none called `key`.
    """
    found = networks_in(content)
    names = ", ".join(network.name for network in found[:_LISTED])
    if key is not None:
        best = [network for network in found if network.name == key]
        if not best:
            fix = f"choose with --key: {names or 'none'}"
            raise CheckpointError("weights", f"holds no network called {key!r}", fix)
    else:
        best = [network for network in found if not network.is_copy] or list(found)
    if len(best) > 1:
        raise CheckpointError("weights", f"holds {len(best)} networks: {names}", "choose one with --key NAME")
    if not best:
        return None, ()
    return best[0], tuple(network for network in found if network is not best[0])


def network_layout(network: FoundNetwork, others: Iterable[FoundNetwork] = ()) -> Layout:
    """Return the layout of `network`, which `others` do not belong to. Errors as `layout_of`."""
    foreign = tuple(other.prefix for other in others if other.keys == network.keys)
    kept = [name for name in network.tensors if not (foreign and unwrapped(name).startswith(foreign))]
    short = {name: network.short_name(name) for name in kept}
    _require_distinct(short)
    tensors = {short[name]: network.tensors[name] for name in short}
    translated = _translated(tensors)
    shapes = {new: tuple(tensors[old].shape) for old, new in translated.names.items()}
    _refuse_volumes(shapes)
    last = _last_norm(shapes)
    shapes = {_renamed(name, last): shape for name, shape in shapes.items()}
    head = _head_of(shapes, translated.conventions)
    ours = {name: _renamed(translated.names[old], last) for name, old in short.items() if old in translated.names}
    ours = {name: head.names.get(new, new) for name, new in ours.items() if new not in head.unused}
    unused = tuple(name for name in network.tensors if name not in ours)
    read = tuple(name for name, old in short.items() if old in translated.read)
    return Layout(ours, head, translated.facts, unused, read, translated.notes, translated.finish)


@dataclass(frozen=True)
class _Translation:
    """What the formats of libraries make of names: our name of each, without those that are not parameters."""

    names: Mapping[str, str]
    facts: ModelFacts
    conventions: HeadConventions
    notes: tuple[str, ...]
    finish: Callable[[Tensor], Tensor] | None = None
    read: tuple[str, ...] = ()


def _translated(tensors: Mapping[str, Tensor | Array]) -> _Translation:
    translation = _Translation({name: name for name in tensors}, ModelFacts(), HeadConventions(), ())
    for kind in formats.items().values():
        if (known := kind()).recognises(translation.names.values()):
            translation = _by_format(translation, known, tensors)
    return translation


def _by_format(before: _Translation, known: CheckpointFormat, tensors: Mapping[str, Tensor | Array]) -> _Translation:
    renamed = known.renames(before.names.values())
    names = {old: renamed.get(new, new) for old, new in before.names.items()}
    content = {new: tensors[old] for old, new in before.names.items()}
    facts = dataclasses.replace(before.facts, **known.facts(content).given())
    conventions = before.conventions if known.head == HeadConventions() else known.head
    kept = {old: new for old, new in names.items() if new is not None}
    finishes = type(known).library_output is not CheckpointFormat.library_output
    finish = functools.partial(known.library_output, tensors=content) if finishes else before.finish
    read = (*before.read, *(old for old, new in before.names.items() if new in known.reads))
    return _Translation(kept, facts, conventions, (*before.notes, *known.notes(content)), finish, read)


def _common_prefix(names: Iterable[str]) -> str:
    """The dotted beginning that all names share: `module.model.`."""
    paths = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def _require_distinct(short: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, plain in short.items():
        if plain in first:
            raise CheckpointError("weights", f"{first[plain]} and {name} are both {plain}", "save one model only")
        first[plain] = name


def _refuse_volumes(shapes: Shapes) -> None:
    if len(shapes.get(_STEM, ())) == 5:
        why = f"is a 3-D network: {_STEM} has shape {shapes[_STEM]}, for volumes (N, C, D, H, W)"
        raise CheckpointError("weights", why, "give a 2-D network")


def _last_norm(shapes: Shapes) -> str | None:
    """The name that another code gives to the norm behind the last block; None if it is ours."""
    if f"{_LAST_NORM}.weight" in shapes:
        return None
    norms = {name.rpartition(".")[0] for name in shapes if name.endswith(".running_mean")}
    found = [name for name in norms if _is_outer(name) and not _BACKBONE.match(f"{name}.")]
    return found[0] if len(found) == 1 else None


def _is_outer(name: str) -> bool:
    """Whether `name` is a direct child of the features."""
    return name.startswith(FEATURES) and name.count(".") == 1


def _renamed(name: str, last_norm: str | None) -> str:
    if last_norm is None or not name.startswith(f"{last_norm}."):
        return name
    return _LAST_NORM + name[len(last_norm) :]


def _head_of(shapes: Shapes, conventions: HeadConventions) -> Head:
    outside = {name: shape for name, shape in shapes.items() if not _BACKBONE.match(name)}
    unknown = [name for name in outside if name.startswith(FEATURES) and not is_unused(name)]
    if unknown:
        listed = f"{', '.join(unknown[:_LISTED])}{' and more' if len(unknown) > _LISTED else ''}"
        raise CheckpointError("weights", f"holds what torchvision's DenseNet does not have: {listed}", WAY_OUT)
    beside = {name: shape for name, shape in outside.items() if not name.startswith(FEATURES)}
    head = head_from(beside, _width(shapes, beside), conventions)
    return dataclasses.replace(head, unused=(*head.unused, *(name for name in outside if name not in beside)))


def _width(shapes: Shapes, beside: Shapes) -> int:
    """Channels behind the last block; where its norm is missing, what the first layer behind it reads."""
    norms = (f"{_LAST_NORM}.{parameter}" for parameter in ("weight", "bias", "running_mean", "running_var"))
    found = next((shapes[name] for name in norms if len(shapes.get(name, ())) == 1), None)
    return found[0] if found else next((shape[1] for shape in beside.values() if len(shape) in (2, 4)), 0)

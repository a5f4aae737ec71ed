"""Find the DenseNet in a checkpoint: which dictionary holds it, and behind which prefix of its names.

Training code wraps weights in dictionaries (`state_dict`, `model`, `student`) and in modules (`module.`, `encoder.`,
`0.0.`), under any name. What counts is what they hold: a stem `conv0` beside a `denseblock1`. What PyTorch puts around
inner modules (`features.denseblock1._orig_mod.denselayer1`) is left out of every name.

>>> found = networks_in({"epoch": 3, "net": {"cnn.features.conv0.weight": ..., ...}})       # doctest: +SKIP
>>> found[0].keys, found[0].prefix                                                           # doctest: +SKIP
(('net',), 'cnn.')
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.sources.reparametrized import with_affine_norms, with_computed_weights

FEATURES: Final = "features."

_STEM: Final = re.compile(r"((?:.*\.)?)conv0\.weight", re.DOTALL)
_DEEPEST: Final = 6
_COPIES: Final = re.compile(r"ema|avg|average|averaged|swa|shadow|teacher|momentum|target", re.IGNORECASE)
_BACKBONE: Final = re.compile(
    r"(conv|norm)\d|pool0|denseblock\d+|transition\d+|norm|(norm|bn)_(final|last)|(final|last)_(norm|bn)"
)
_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WORDS: Final = re.compile(r"[^A-Za-z]+")


@dataclass(frozen=True)
class FoundNetwork:
    """One DenseNet in a checkpoint.

    Attributes:
        keys: of the dictionaries on the way to its own.
        tensors: the dictionary that holds it, perhaps with other things.
        prefix: of its names.
        is_bare: whether `features.` is missing between the prefix and `conv0`.
        computed: names of those of its tensors that pruning or a norm of weights computes from others.
        filled: names of its norms that have no scale and shift, so that they are 1 and 0.
    """

    keys: tuple[str, ...]
    tensors: Mapping[Any, Any]
    prefix: str = ""
    is_bare: bool = False
    computed: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """What the names of its stem and blocks begin with."""
        return self.prefix if self.is_bare else self.prefix + FEATURES

    @property
    def is_copy(self) -> bool:
        """Whether its names say that it is an average or a teacher of another network."""
        words = (word for text in (*self.keys, self.prefix) for word in _WORDS.split(text))
        return any(_COPIES.fullmatch(word) for word in words)

    @property
    def name(self) -> str:
        """What tells it from others of the same checkpoint: keys and prefix, with dots."""
        return ".".join((*self.keys, self.prefix)).strip(".") or "(top level)"

    def short_name(self, name: str) -> str:
        """Return `name` without the wrapping: `features.conv0.weight`, `classifier.weight`.

        What lies outside the prefix loses what it shares with it: behind `module.cnn.`, `module.fc.weight` becomes
        `fc.weight`.
        """
        name = unwrapped(name)
        if self.is_bare and name.startswith(self.prefix) and _of_backbone(name[len(self.prefix) :]):
            return FEATURES + name[len(self.prefix) :]
        for end in _ends(self.prefix):
            if name.startswith(self.prefix[:end]):
                return name[end:]
        return name


def unwrapped(name: str) -> str:
    """Return `name` without what compilation, sharding and activation checkpointing insert.

    >>> unwrapped("features._orig_mod.denseblock1._checkpoint_wrapped_module.denselayer1.norm1.bias")
    'features.denseblock1.denselayer1.norm1.bias'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def networks_in(content: object) -> tuple[FoundNetwork, ...]:
    """Return every DenseNet that `content` holds, in the order of the file."""
    return tuple(
        network
        for keys, mapping in dictionaries_in(content)
        for network in _networks_of(keys, {str(name): mapping[name] for name in mapping})
    )


def dictionaries_in(content: object) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield (keys on the way, dictionary) for each dictionary that holds tensors, the outermost first, each once.

    The key of an item of a list or tuple is its number.
    """
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    seen: set[int] = set()
    while waiting:
        keys, value = waiting.popleft()
        if not isinstance(value, (Mapping, list, tuple)) or len(keys) > _DEEPEST or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping) and any(hasattr(item, "shape") for item in value.values()):
            yield keys, value
        waiting += (((*keys, key), item) for key, item in entries_of(value).items())


def entries_of(value: Any) -> dict[str, Any]:
    """Return the entries of a dictionary, list or tuple by key or number, as text."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {str(key): item for key, item in pairs}


def _networks_of(keys: tuple[str, ...], given: Mapping[str, Any]) -> Iterator[FoundNetwork]:
    tensors, computed = with_computed_weights(given)
    tensors, filled = with_affine_norms(tensors)
    names = [unwrapped(name) for name in tensors]
    roots = dict.fromkeys(match[1] for name in names if (match := _STEM.fullmatch(name)))
    for root in roots:
        if not any(name.startswith(f"{root}denseblock1.") for name in names):
            continue
        is_bare = not f".{root}".endswith(f".{FEATURES}")
        prefix = root if is_bare else root.removesuffix(FEATURES)
        yield FoundNetwork(keys, tensors, prefix, is_bare, computed, filled)


def _of_backbone(name: str) -> bool:
    return _BACKBONE.fullmatch(name.partition(".")[0]) is not None


def _ends(prefix: str) -> Iterator[int]:
    """Where the dotted beginnings of `prefix` end, the longest first."""
    return (index + 1 for index in range(len(prefix) - 1, -1, -1) if prefix[index] == ".")

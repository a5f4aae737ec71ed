"""Which DenseNets there are, by name.

>>> find_variant("DenseNet-169").spec.blocks
(6, 12, 32, 32)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.cifar import CIFAR_PREPROCESSING
from densenet_deploy.variants.family import Family, Variant, families
from densenet_deploy.variants.spec import DenseNetSpec

__all__ = [
    "DEFAULT_VARIANT",
    "Variant",
    "closest_variant",
    "custom_variant",
    "find_variant",
    "is_variant",
    "variant_for",
    "variant_names",
    "variant_with",
]

DEFAULT_VARIANT: Final = "121"

_PREFIX: Final = re.compile(r"^densenet[-_]?")


def find_variant(name: str) -> Variant:
    """Return the variant called `name`; `121`, `densenet121` and `DenseNet-121` are the same one.

    Raises:
        UnknownNameError: naming the nearest listed variant.
        UsageError: if the name is of a family, but its numbers do not make a network.
    """
    plain = _PREFIX.sub("", name.strip().lower())
    for family in _families():
        if (variant := family.find(plain)) is not None:
            return variant
    raise UnknownNameError.among("variant", plain, variant_names())


def variant_with(name: str | None, changes: Mapping[str, Any], channels: int | None = None) -> Variant:
    """Return the variant called `name` (None: the default one) with `changes` to the numbers of its spec.

    `channels` are those of the images; None keeps the variant's.

    >>> variant_with("169", {"growth_rate": 24}).spec.growth_rate
    24

    Raises:
        UsageError: if the variant is unknown, or its numbers do not make a network.
    """
    variant = find_variant(DEFAULT_VARIANT if name is None else name)
    changes = changes if channels is None else {**changes, "in_channels": channels}
    return variant_for(dataclasses.replace(variant.spec, **changes)) if changes else variant


def is_variant(name: str) -> bool:
    """Whether `name` is that of a variant.

    >>> is_variant("densenet169"), is_variant("imagenet")
    (True, False)
    """
    try:
        return find_variant(name) is not None
    except UnknownNameError:
        return False
    except UsageError:  # of a family, with numbers that do not make a network: `find_variant` says which
        return True


def variant_names() -> tuple[str, ...]:
    """Return the listed names; the CIFAR families hold more: `cifar-L-k` and `cifar-bc-L-k`."""
    return tuple(name for family in _families() for name in family.names)


def variant_for(spec: DenseNetSpec) -> Variant:
    """Return `spec` under the name of the variant that has its architecture, or under a custom name."""
    known = _like(spec)
    return custom_variant(spec) if known is None else dataclasses.replace(known, spec=spec)


def custom_variant(spec: DenseNetSpec) -> Variant:
    """Return `spec` as a variant whose name says its architecture and is safe in file names.

    Of layers with different bottlenecks, as after pruning, it says how wide they are on average: `n4-w0.72` is 0.72 of
    4 growth rates.

    >>> custom_variant(DenseNetSpec(growth_rate=12, blocks=(3, 3))).name
    'custom-k12-b3.3-i64-c0.5-n4-imagenet'
    """
    blocks, narrow = ".".join(map(str, spec.blocks)), f"n{spec.bn_size}"
    if spec.bottlenecks:
        narrow += f"-w{sum(spec.bottlenecks) / (len(spec.bottlenecks) * spec.bn_size * spec.growth_rate):.2f}"
    name = f"custom-k{spec.growth_rate}-b{blocks}-i{spec.init_features}-c{spec.compression}-{narrow}-{spec.stem}"
    is_small = spec.stem_layers.kernel == 3 and spec.stem_layers.convolutions == 1  # made for images of 32 or 64 pixels
    return Variant(name, spec, CIFAR_PREPROCESSING if is_small else Preprocessing())


def closest_variant(spec: DenseNetSpec) -> Variant:
    """Return the named variant with the architecture of `spec`, else the listed one that differs least."""
    listed = [variant for family in _families() for variant in family.variants()]
    return _like(spec) or min(listed, key=lambda variant: _difference(variant.spec, spec))


def _like(spec: DenseNetSpec) -> Variant | None:
    return next((variant for family in _families() if (variant := family.like(spec)) is not None), None)


def _families() -> list[Family]:
    return [family() for family in families.items().values()]


def _difference(a: DenseNetSpec, b: DenseNetSpec) -> tuple[float, ...]:
    """How two architectures differ, what weighs most first."""
    return (
        a.stem != b.stem,
        (a.bn_size == 0) != (b.bn_size == 0),
        abs(a.growth_rate - b.growth_rate),
        sum(abs(x - y) for x, y in zip(a.blocks, b.blocks, strict=False)),
        abs(a.init_features - b.init_features),
    )

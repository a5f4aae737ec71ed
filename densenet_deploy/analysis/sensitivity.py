"""What INT8 costs, layer by layer or block by block, as numbers that reports and plots share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a file loses against the float model.

    Attributes:
        sqnr_db: SQNR of the outputs in dB: infinite where they are the same, minus infinity if any is NaN.
        top1: top-1 accuracy, a fraction; None where it was not measured.
    """

    sqnr_db: float
    top1: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """One layer or block.

    Attributes:
        name: of the layer or block.
        layers: the names of its layers.
        alone: when only this is INT8: the lower the SQNR, the more sensitive.
        spared: when only this is float: the higher the SQNR, the more is gained by leaving it float.
    """

    name: str
    layers: tuple[str, ...]
    alone: Cost
    spared: Cost


def most_sensitive_first(found: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Sort by what each does alone; among equals the order stays."""
    return tuple(sorted(found, key=lambda one: one.alone.sqnr_db))


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Leave out the parts that all `names` begin with, and what a DenseNet's parts have in common.

    >>> short_names(["features.conv0", "features.denseblock1.denselayer2.conv1"])
    ('conv0', 'block1.layer2.conv1')
    """
    parts = [name.strip("/").replace("/", ".").split(".") for name in names]
    shared = 0
    while parts and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return tuple(".".join(part[shared:]).replace("dense", "") for part in parts)

"""What INT8 costs, layer by layer or block by block, as numbers that reports and plots share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Fidelity:
    """How close a file's outputs are to the FP32 model's.

    Attributes:
        sqnr_db: SQNR of the outputs in dB: infinite where they are the same, minus infinity if any is NaN.
        top1: top-1 accuracy, a fraction; None where it was not measured.
    """

    sqnr_db: float
    top1: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return both numbers; null for what is infinite or not measured."""
        return {"sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None, "top1": self.top1}

    @classmethod
    def from_json(cls, facts: object) -> Self:
        """Read what `to_json` returned; null is read as infinite.

        Raises:
            ValueError: if it is something else.
        """
        if not isinstance(facts, Mapping) or "sqnr_db" not in facts:
            raise ValueError("has no sqnr_db")
        sqnr_db, top1 = facts["sqnr_db"], facts.get("top1")
        if any(value is not None and type(value) not in (int, float) for value in (sqnr_db, top1)):
            raise ValueError("holds something other than numbers")
        return cls(math.inf if sqnr_db is None else sqnr_db, top1)


@dataclass(frozen=True)
class Sensitivity:
    """One layer or block.

    Attributes:
        name: of the layer or block.
        layers: the names of its layers.
        only_int8: when only this is INT8: the lower the SQNR, the more sensitive.
        only_float: when only this is FP32: the higher the SQNR, the more is gained by keeping it in FP32.
    """

    name: str
    layers: tuple[str, ...]
    only_int8: Fidelity
    only_float: Fidelity


def most_sensitive_first(found: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Sort by the SQNR with only that layer in INT8; equal ones keep their order."""
    return tuple(sorted(found, key=lambda one: one.only_int8.sqnr_db))


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

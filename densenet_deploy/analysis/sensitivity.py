"""What INT8 costs, layer by layer or block by block, as numbers that reports and plots share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a file loses against the float model.

    Attributes:
        sqnr_db: SQNR of the outputs in dB: infinite where they are the same, minus infinity if any is NaN.
        top1: top-1 accuracy, a fraction; None where it was not measured.
    """

    sqnr_db: float
    top1: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the cost with plain types: an infinite SQNR is null, and `nonfinite` says whether outputs were NaN."""
        finite = self.sqnr_db if math.isfinite(self.sqnr_db) else None
        return {"sqnr_db": finite, "top1": self.top1, "nonfinite": self.sqnr_db == -math.inf}

    @classmethod
    def from_json(cls, data: Any) -> Cost:
        """Read what `to_json` returned.

        Raises:
            ValueError: if it is something else.
        """
        try:
            infinite = -math.inf if data.get("nonfinite") else math.inf
            sqnr_db, top1 = data["sqnr_db"], data["top1"]
            return cls(infinite if sqnr_db is None else float(sqnr_db), None if top1 is None else float(top1))
        except (AttributeError, KeyError, TypeError) as exc:
            raise ValueError("is not a cost") from exc

    def __str__(self) -> str:
        return f"{self.sqnr_db:.1f} dB" + ("" if self.top1 is None else f" {self.top1:.2%}")


@dataclass(frozen=True)
class Sensitivity:
    """One layer or block.

    Attributes:
        name: of the layer or block.
        layers: the names of its layers.
        only_int8: when only this is INT8: the lower the SQNR, the more sensitive.
        only_float: when only this is float: the higher the SQNR, the more is gained by leaving it float.
        gain_db: what leaving it float gains over everything in INT8; None where infinite.
    """

    name: str
    layers: tuple[str, ...]
    only_int8: Cost
    only_float: Cost
    gain_db: float | None = None


def most_sensitive_first(found: Sequence[Sensitivity]) -> tuple[Sensitivity, ...]:
    """Sort by what each costs when only it is INT8; equals keep their order."""
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

"""The result of a comparison of two models, without numpy: reports hold it. `compare.py` has the formulas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from densenet_deploy.errors import DataError


@dataclass(frozen=True)
class Parity:
    """The result of a comparison; the formulas are those of `compare.py`.

    >>> compare("densenet_digits.safetensors", "digits.onnx").parity.top1_agreement
    1.0

    Attributes:
        max_abs, mean_abs: the largest and the mean absolute error.
        max_rel, mean_rel: those errors divided by the size of the reference value plus 1e-6.
        cosine: of the angle between all values of both, 1 where they are proportional.
        sqnr_db: decibels; +∞ where reference and candidate are identical.
        centred_sqnr_db: decibels, over the samples without NaN or infinite values. None for fewer than two of those,
            for arrays of fewer than two axes, the first of which counts the samples, and where it was not measured.
        top1_agreement: fraction of samples with the same best class; among equal scores the lowest index is best.
            None unless the arrays were class scores: (N, C) with C ≥ 2.
        top5_agreement: fraction of samples with the best reference class among the five best of the candidate. None as
            well where C ≤ 5, since it could not fail.
        count: values compared.
        nonfinite: values that are NaN or infinite in either array. The other metrics cover the remaining values (NaN
            if none remain), but the comparison fails, and a sample with such a value does not agree.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    cosine: float
    sqnr_db: float
    centred_sqnr_db: float | None
    top1_agreement: float | None
    top5_agreement: float | None
    count: int
    nonfinite: int = 0

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics by name: finite numbers, or None where infinite or without meaning."""
        metrics: dict[str, float | None] = dataclasses.asdict(self)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}

    @classmethod
    def from_json(cls, facts: Any) -> Self:
        """Read what `to_json` wrote, older files without `centred_sqnr_db` included.

        Null becomes +∞ in both SQNRs where the largest error is 0. Elsewhere it becomes None in the metrics that may be
        None, −∞ in the SQNR where others are known (the reference was zero), and otherwise NaN.

        Raises:
            ValueError: if a metric is missing or not a number.
        """
        if not isinstance(facts, Mapping):
            raise ValueError("is not an object of metrics")
        values = {"centred_sqnr_db": None, "nonfinite": 0, **facts}
        metrics = {field.name: _metric(values, field.name) for field in dataclasses.fields(cls)}
        if metrics["max_abs"] == 0:
            metrics |= {"sqnr_db": math.inf, "centred_sqnr_db": math.inf}
        if metrics["sqnr_db"] is None and metrics["max_abs"] is not None:
            metrics["sqnr_db"] = -math.inf
        for name in ("max_abs", "mean_abs", "max_rel", "mean_rel", "cosine", "sqnr_db"):
            metrics[name] = math.nan if metrics[name] is None else metrics[name]
        return cls(**metrics)

    def __str__(self) -> str:
        centred = "" if self.centred_sqnr_db is None else f" (centred {self.centred_sqnr_db:.1f} dB)"
        parts = [f"cosine {self.cosine:.7f}", f"SQNR {self.sqnr_db:.1f} dB{centred}", f"max |Δ| {self.max_abs:.3g}"]
        if self.top1_agreement is not None:
            parts.append(f"top-1 agreement {self.top1_agreement:.2%}")
        if self.nonfinite:
            parts.append(f"{self.nonfinite} values NaN or infinite")
        return ", ".join([*parts, f"{self.count} values"])


def _metric(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise ValueError(f"has no {name}")
    value = values[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"holds {value!r:.40} as {name}")
    return value


def worst_first(parities: Mapping[str, Parity]) -> dict[str, Parity]:
    """Return the parities by rising SQNR, NaN or infinite values before all others; equals keep their order."""
    return dict(sorted(parities.items(), key=lambda item: -math.inf if item[1].nonfinite else item[1].sqnr_db))


def worst(parities: Mapping[str, Parity]) -> tuple[str, Parity]:
    """Return the name and parity of the output with the lowest SQNR, or the first with NaN or infinite values.

    Raises:
        DataError: if `parities` is empty.
    """
    if not parities:
        raise nothing_compared()
    return next(iter(worst_first(parities).items()))


def nothing_compared() -> DataError:
    """The error for a comparison of no samples."""
    return DataError("parity", "nothing was compared", "give at least one sample")

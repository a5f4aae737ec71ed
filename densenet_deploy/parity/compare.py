"""How far a candidate's outputs are from a reference's, in one pass over any number of batches.

With r the reference and c the candidate, over every value of every batch:

    max_abs, mean_abs   of |r − c|
    max_rel, mean_rel   of |r − c| / (|r| + ε), ε = 1e-6: below it an activation of order one is rounding noise
    cosine              Σrc / (√Σr² · √Σc²)
    sqnr_db             10 log₁₀(Σr² / Σ(r − c)²)

The cosine is one global number, not a mean over samples: it is then tied to the SQNR (1 − cosine ≈ half the relative
error power, where the error is not along r), does not depend on how the samples were batched, and means something for
tensors without a batch axis. All-zero arrays: two of them are identical (cosine 1, SQNR ∞); one against something else
has cosine 0, and an SQNR of −∞ where the reference is the zero one. Sums are float64, and (r − c)² is summed as such,
so that nothing cancels.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import DataError
from densenet_deploy.runtime.feeds import Array

RELATIVE_EPS: Final = 1e-6
TOP_K: Final = 5

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """The result of a comparison; the formulas are those of the module.

    Attributes:
        sqnr_db: decibels; +∞ where reference and candidate are identical.
        top1_agreement: fraction of samples whose best class is the same; among equal scores the lowest index is best.
            None unless the arrays were class scores: (N, C) with C ≥ 2.
        top5_agreement: fraction of samples whose best reference class is among the five best of the candidate. None as
            well where C ≤ 5, since it could not fail.
        count: values compared.
        nonfinite: values that are NaN or infinite in either array. The other numbers speak of the remaining values (NaN
            if none remain), but the comparison fails, and a sample that holds such a value agrees with nothing.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    top5_agreement: float | None
    count: int
    nonfinite: int = 0

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics by name: finite numbers, or None where infinite or without meaning."""
        metrics: dict[str, float | None] = dataclasses.asdict(self)
        return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}

    def __str__(self) -> str:
        parts = [f"cosine {self.cosine:.7f}", f"SQNR {self.sqnr_db:.1f} dB", f"max |Δ| {self.max_abs:.3g}"]
        if self.top1_agreement is not None:
            parts.append(f"top-1 agreement {self.top1_agreement:.2%}")
        if self.nonfinite:
            parts.append(f"{self.nonfinite} values NaN or infinite")
        return ", ".join([*parts, f"{self.count} values"])


class ParityMeter:
    """Compares batch by batch; its memory does not grow with their number.

    >>> meter = ParityMeter()
    >>> meter.update(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))
    >>> meter.result().top1_agreement
    1.0

    Args:
        class_scores: False where 2-D arrays hold features, whose largest value names no class.
    """

    def __init__(self, *, class_scores: bool = True) -> None:
        self._class_scores = class_scores
        self._sample_shape: tuple[int, ...] | None = None
        self._errors = _Errors()
        self._agreement = _Agreement()

    def update(self, reference: Array, candidate: Array) -> None:
        """Add one batch: two arrays of the same shape; only the first axis may differ from batch to batch.

        Raises:
            DataError: if the shapes differ.
        """
        self._check_shapes(reference.shape, candidate.shape)
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        finite = np.isfinite(r) & np.isfinite(c)
        self._errors.add(r[finite], c[finite], r.size)
        if self._has_scores:
            self._agreement.add(r, c, finite)

    def result(self) -> Parity:
        """Return the metrics of all batches so far.

        Raises:
            DataError: if there was nothing to compare.
        """
        if self._errors.count == 0:
            raise DataError("parity", "nothing was compared", "give at least one sample")
        return Parity(*self._errors.metrics(), *self._agreements(), self._errors.count, self._errors.nonfinite)

    @property
    def _has_scores(self) -> bool:
        shape = self._sample_shape
        return self._class_scores and shape is not None and len(shape) == 1 and shape[0] >= 2

    def _agreements(self) -> tuple[float | None, float | None]:
        if not self._has_scores or self._sample_shape is None:
            return None, None
        top1, top5 = self._agreement.fractions()
        return top1, top5 if self._sample_shape[0] > TOP_K else None

    def _check_shapes(self, reference: tuple[int, ...], candidate: tuple[int, ...]) -> None:
        if reference != candidate:
            why = f"the reference gives {reference}, the candidate {candidate}"
            raise DataError("parity", why, "compare models with the same outputs on the same inputs")
        if self._sample_shape is None:
            self._sample_shape = reference[1:]
        if self._sample_shape != reference[1:]:
            why = f"samples of {self._sample_shape} are followed by samples of {reference[1:]}"
            raise DataError("parity", why, "feed both models inputs of one size")


def compare(reference: Array, candidate: Array, *, class_scores: bool = True) -> Parity:
    """Return the parity of two arrays of the same shape; see `ParityMeter`.

    Raises:
        DataError: if the shapes differ or the arrays are empty.
    """
    meter = ParityMeter(class_scores=class_scores)
    meter.update(reference, candidate)
    return meter.result()


@dataclass
class _Errors:
    """Running maxima and sums over the finite values."""

    count: int = 0
    nonfinite: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    sum_abs: float = 0.0
    sum_rel: float = 0.0
    noise: float = 0.0
    rr: float = 0.0
    cc: float = 0.0
    rc: float = 0.0

    def add(self, r: Doubles, c: Doubles, size: int) -> None:
        """Add the finite values `r` and `c`, (M,), of a batch of `size` values."""
        absolute = np.abs(r - c)
        relative = absolute / (np.abs(r) + RELATIVE_EPS)
        self.count += size
        self.nonfinite += size - r.size
        self.max_abs = max(self.max_abs, float(absolute.max(initial=0.0)))
        self.max_rel = max(self.max_rel, float(relative.max(initial=0.0)))
        self.sum_abs += float(absolute.sum())
        self.sum_rel += float(relative.sum())
        self.noise += float(absolute @ absolute)
        self.rr += float(r @ r)
        self.cc += float(c @ c)
        self.rc += float(r @ c)

    def metrics(self) -> tuple[float, float, float, float, float, float]:
        """Return max_abs, mean_abs, max_rel, mean_rel, cosine and sqnr_db."""
        finite = self.count - self.nonfinite
        if finite == 0:
            return (math.nan,) * 6
        means = self.sum_abs / finite, self.sum_rel / finite
        return self.max_abs, means[0], self.max_rel, means[1], self._cosine(), self._sqnr_db()

    def _cosine(self) -> float:
        if self.rr == 0 or self.cc == 0:
            return float(self.rr == self.cc)
        return min(1.0, max(-1.0, self.rc / (math.sqrt(self.rr) * math.sqrt(self.cc))))

    def _sqnr_db(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.rr / self.noise) if self.rr else -math.inf


@dataclass
class _Agreement:
    """How many samples keep their best class first, and among the first five."""

    samples: int = 0
    first: int = 0
    among_five: int = 0

    def add(self, r: Doubles, c: Doubles, finite: npt.NDArray[np.bool_]) -> None:
        """Add scores (N, C); a sample that is not wholly `finite` (N, C) agrees with nothing."""
        valid = finite.all(axis=1)
        ranks = _candidate_ranks(r[valid], c[valid])
        self.samples += len(r)
        self.first += int((ranks < 1).sum())
        self.among_five += int((ranks < TOP_K).sum())

    def fractions(self) -> tuple[float, float]:
        return self.first / self.samples, self.among_five / self.samples


def _candidate_ranks(r: Doubles, c: Doubles) -> npt.NDArray[np.int64]:
    """Return where the candidate ranks each sample's best reference class (0 is first); ties go to the lower index."""
    best = r.argmax(axis=1)[:, None]
    score = np.take_along_axis(c, best, axis=1)
    wins_tie = (c == score) & (np.arange(c.shape[1]) < best)
    ranks: npt.NDArray[np.int64] = ((c > score) | wins_tie).sum(axis=1)
    return ranks

"""How far a candidate's outputs are from a reference's, in one pass over any number of batches.

With r the reference and c the candidate, over every value of every batch:

    max_abs, mean_abs   of |r − c|
    max_rel, mean_rel   of |r − c| / (|r| + ε), ε = 1e-6: below it an activation of order one is rounding noise
    cosine              Σrc / (√Σr² · √Σc²)
    sqnr_db             10 log₁₀(Σr² / Σ(r − c)²)
    centred_sqnr_db     10 log₁₀(Σ(r − r̄)² / Σ((r − r̄) − (c − c̄))²), with r̄ and c̄ each element's mean over the samples

The cosine is one global number, not a mean over samples: it is then tied to the SQNR (1 − cosine ≈ half the relative
error power, where the error is not along r), does not depend on how the samples were batched, and is defined for
tensors without a batch axis. The centred SQNR compares what the image changes: a large constant part of the outputs,
which flatters the plain one, drops out of it, and so does a constant error. All-zero arrays: two of them are identical
(cosine 1, SQNR ∞); one against something else has cosine 0, and an SQNR of −∞ where the reference is the zero one.
Sums are float64, and differences are squared as such, so that nothing cancels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import DataError
from densenet_deploy.parity.metrics import Parity as Parity
from densenet_deploy.parity.metrics import nothing_compared
from densenet_deploy.parity.metrics import worst as worst
from densenet_deploy.parity.metrics import worst_first as worst_first
from densenet_deploy.runtime.batching import run_batched
from densenet_deploy.runtime.feeds import Array, Feeds
from densenet_deploy.runtime.meaning import class_outputs
from densenet_deploy.runtime.runner import Runner

RELATIVE_EPS: Final = 1e-6
TOP_K: Final = 5

Doubles = npt.NDArray[np.float64]


class ParityMeter:
    """Compares one output of two models batch by batch; its memory does not grow with the number of batches.

    >>> meter = ParityMeter()
    >>> meter.update(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))
    >>> meter.result().top1_agreement
    1.0

    Args:
        class_scores: whether the largest value of a row (N, C) names a class, so that agreement has a meaning.
        centred: measure the centred SQNR as well, which holds four float64 arrays of the size of a sample.
    """

    def __init__(self, *, class_scores: bool = True, centred: bool = True) -> None:
        self._class_scores = class_scores
        self._centred = _Centred() if centred else None
        self._sample_shape: tuple[int, ...] | None = None
        self._errors = _Errors()
        self._agreement: _Agreement | None = None

    def update(self, reference: Array, candidate: Array) -> None:
        """Add one batch: two arrays of the same shape; only the first axis may differ from batch to batch.

        Raises:
            DataError: if the shapes differ.
        """
        self._check_shapes(reference.shape, candidate.shape)
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        finite = np.isfinite(r) & np.isfinite(c)
        self._errors.add(r[finite], c[finite], r.size)
        if self._centred is not None and r.ndim > 1:
            self._centred.add(r, c, finite)
        if self._agreement is not None:
            self._agreement.add(r, c, finite)

    def result(self) -> Parity:
        """Return the metrics of all batches so far.

        Raises:
            DataError: if there was nothing to compare.
        """
        if self._errors.count == 0:
            raise nothing_compared()
        centred = None if self._centred is None else self._centred.sqnr_db()
        top1, top5 = (None, None) if self._agreement is None else self._agreement.fractions()
        return Parity(*self._errors.metrics(), centred, top1, top5, self._errors.count, self._errors.nonfinite)

    def _check_shapes(self, reference: tuple[int, ...], candidate: tuple[int, ...]) -> None:
        if reference != candidate:
            why = f"the reference gives {reference}, the candidate {candidate}"
            raise DataError("parity", why, "compare models with the same outputs on the same inputs")
        if self._sample_shape is None:
            self._sample_shape = reference[1:]
            if self._class_scores and len(reference) == 2 and reference[1] >= 2:
                self._agreement = _Agreement(reference[1])
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


class ComparisonMeter:
    """Compares all outputs of two models batch by batch.

    Outputs are matched by name, and those left over by position if both models have equally many of them. An output of
    the candidate that the reference does not have is ignored.

    >>> meter = ComparisonMeter()
    >>> meter.update({"logits": np.array([[1.0, 2.0]])}, {"logits": np.array([[1.0, 2.5]])})
    >>> {name: parity.max_abs for name, parity in meter.result().items()}
    {'logits': 0.5}

    `class_scores` are the outputs of the reference whose top-1 agreement has a meaning; see `shared_classes`.
    """

    def __init__(self, class_scores: Collection[str] = ()) -> None:
        self._class_scores = class_scores
        self._meters: dict[str, ParityMeter] = {}

    def update(self, reference: Feeds, candidate: Feeds) -> None:
        """Add one batch of outputs.

        Raises:
            DataError: if the candidate lacks an output, or its shape differs.
        """
        for name, other in matched_outputs(tuple(reference), tuple(candidate)):
            if name not in self._meters:
                self._meters[name] = ParityMeter(class_scores=name in self._class_scores)
            self._meters[name].update(reference[name], candidate[other])

    def result(self) -> dict[str, Parity]:
        """Return the parity of each output by the reference's name, in its order.

        Raises:
            DataError: if there was nothing to compare.
        """
        if not self._meters:
            raise nothing_compared()
        return {name: meter.result() for name, meter in self._meters.items()}


@dataclass(frozen=True)
class LayerComparison:
    """The parity of inner tensors by name, in execution order, and why others could not be compared."""

    layers: Mapping[str, Parity]
    skipped: Mapping[str, str]


class LayerMeter:
    """Compares the inner tensors of two models batch by batch, matched by name."""

    def __init__(self) -> None:
        self._meters: dict[str, ParityMeter] = {}
        self._reasons: dict[str, str] = {}

    def update(self, reference: Feeds, candidate: Feeds) -> None:
        """Add the tensors of one batch; the order of the first `reference` is the execution order."""
        for name in dict.fromkeys((*reference, *candidate)):
            reason = _reason_to_skip(name, reference, candidate)
            if reason is not None:
                self._reasons.setdefault(name, reason)
                continue
            meter = self._meters.setdefault(name, ParityMeter(class_scores=False, centred=False))
            meter.update(reference[name], candidate[name])

    def result(self) -> LayerComparison:
        """Return the comparison of all batches so far; a tensor that did not match in one batch is skipped."""
        compared = {name: meter.result() for name, meter in self._meters.items() if name not in self._reasons}
        return LayerComparison(compared, dict(self._reasons))


def outputs_of(runner: Runner, samples: Iterable[Array]) -> Iterator[dict[str, Array]]:
    """Yield the outputs of `runner` for each batch of `samples`, by name."""
    return (run_batched(runner, sample) for sample in samples)


def parity_of(reference: Runner, candidate: Runner, samples: Iterable[Array]) -> dict[str, Parity]:
    """Run two models on the same samples and return the parity of each output, by the reference's name.

    >>> with open_runner("a.onnx") as a, open_runner("b.onnx") as b:  # doctest: +SKIP
    ...     name, parity = worst(parity_of(a, b, noise(8, (1, 3, 224, 224))))

    `samples` are batches (N, C, H, W), of which one is held at a time.

    Raises:
        DataError: if there are no samples, or the models have different outputs.
    """
    first, second = itertools.tee(samples)
    classes = shared_classes(reference, candidate)
    return compare_outputs(outputs_of(reference, first), outputs_of(candidate, second), classes)


def shared_classes(reference: Runner, candidate: Runner) -> frozenset[str]:
    """Return the outputs, by the reference's names, whose largest value names a class in both models: the same one.

    Raises:
        DataError: if the models have different outputs.
    """
    if other_labels(reference, candidate):
        return frozenset()
    ours, theirs = class_outputs(reference), class_outputs(candidate)
    names = ([spec.name for spec in runner.outputs] for runner in (reference, candidate))
    return frozenset(name for name, other in matched_outputs(*names) if name in ours and other in theirs)


def other_labels(reference: Runner, candidate: Runner) -> bool:
    """Whether both models state their labels, and these differ: then an output does not mean the same in both."""
    ours, theirs = (() if one.manifest is None else one.manifest.labels for one in (reference, candidate))
    return bool(ours and theirs) and ours != theirs


def compare_outputs(
    reference: Iterable[Feeds], candidate: Iterable[Feeds], class_scores: Collection[str] = ()
) -> dict[str, Parity]:
    """Return the parity of each output over the same batches, of which one is held at a time.

    Top-1 agreement is measured for the outputs in `class_scores` alone; see `shared_classes`.

    Raises:
        DataError: if there is nothing to compare, or the models have different outputs or numbers of batches.
    """
    meter = ComparisonMeter(class_scores)
    for ours, theirs in _pairs(reference, candidate):
        meter.update(ours, theirs)
    return meter.result()


def _pairs(reference: Iterable[Feeds], candidate: Iterable[Feeds]) -> Iterator[tuple[Feeds, Feeds]]:
    for ours, theirs in zip_longest(reference, candidate):
        if ours is None or theirs is None:
            raise DataError("parity", "one model ran more batches than the other", "run both on the same inputs")
        yield ours, theirs


def matched_outputs(reference: Sequence[str], candidate: Sequence[str]) -> list[tuple[str, str]]:
    """Pair every output of the reference with one of the candidate: by name, then by position.

    >>> matched_outputs(["logits", "features"], ["features", "output_0"])
    [('logits', 'output_0'), ('features', 'features')]

    Raises:
        DataError: if an output has no counterpart, or more than one is possible.
    """
    missing = [name for name in reference if name not in candidate]
    others = [name for name in candidate if name not in reference]
    if missing and len(missing) != len(others):
        why = f"the candidate does not have this output; it has {', '.join(candidate) or 'none'}"
        raise DataError(missing[0], why, "compare models with the same outputs")
    partners = dict(zip(missing, others, strict=False))
    return [(name, partners.get(name, name)) for name in reference]


def _reason_to_skip(name: str, reference: Feeds, candidate: Feeds) -> str | None:
    if name not in candidate:
        return "only in the reference"
    if name not in reference:
        return "only in the candidate"
    ours, theirs = reference[name], candidate[name]
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} in the reference, {theirs.shape} in the candidate"
    return None if ours.size else "empty"


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
        return self.max_abs, means[0], self.max_rel, means[1], self._cosine(), _decibels(self.rr, self.noise)

    def _cosine(self) -> float:
        if self.rr == 0 or self.cc == 0:
            return float(self.rr == self.cc)
        return min(1.0, max(-1.0, self.rc / (math.sqrt(self.rr) * math.sqrt(self.cc))))


class _Centred:
    """Power of signal and noise about each element's mean, in one pass.

    Batches are combined by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), after subtraction of the first sample: elements that never change then add exactly nothing.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._start: Doubles | None = None
        self._mean: Doubles
        self._power = np.zeros(2)

    def add(self, r: Doubles, c: Doubles, finite: npt.NDArray[np.bool_]) -> None:
        """Add (N, …) arrays, without the samples that are not wholly `finite`."""
        valid = finite.all(axis=tuple(range(1, r.ndim)))
        if not valid.any():
            return
        values = np.stack([r[valid], r[valid] - c[valid]])
        if self._start is None:
            self._start = values[:, :1].copy()
            self._mean = np.zeros_like(self._start)
        values -= self._start
        count, mean = values.shape[1], values.mean(axis=1, keepdims=True)
        step, total = mean - self._mean, self._samples + count
        self._power += _power(values - mean) + _power(step) * (self._samples * count / total)
        self._mean = self._mean + step * (count / total)
        self._samples = total

    def sqnr_db(self) -> float | None:
        return _decibels(*self._power) if self._samples > 1 else None


def _power(values: Doubles) -> Doubles:
    """Return the sum of squares of each half of `values` (2, …)."""
    halves = values.reshape(2, -1)
    return np.asarray(np.einsum("ij,ij->i", halves, halves))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass
class _Agreement:
    """How many samples keep their best of several classes first, and among the first five."""

    classes: int
    samples: int = 0
    first: int = 0
    among_five: int = 0

    def add(self, r: Doubles, c: Doubles, finite: npt.NDArray[np.bool_]) -> None:
        """Add scores (N, C); a sample that is not wholly `finite` (N, C) does not agree."""
        valid = finite.all(axis=1)
        ranks = _candidate_ranks(r[valid], c[valid])
        self.samples += len(r)
        self.first += int((ranks < 1).sum())
        self.among_five += int((ranks < TOP_K).sum())

    def fractions(self) -> tuple[float, float | None]:
        """Return the top-1 and the top-5 agreement, the latter None where it could not fail."""
        return self.first / self.samples, self.among_five / self.samples if self.classes > TOP_K else None


def _candidate_ranks(r: Doubles, c: Doubles) -> npt.NDArray[np.int64]:
    """Return where the candidate ranks each sample's best reference class (0 is first); ties go to the lower index."""
    best = r.argmax(axis=1)[:, None]
    score = np.take_along_axis(c, best, axis=1)
    wins_tie = (c == score) & (np.arange(c.shape[1]) < best)
    ranks: npt.NDArray[np.int64] = ((c > score) | wins_tie).sum(axis=1)
    return ranks

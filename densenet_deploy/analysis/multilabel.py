"""How good a multilabel model is: AUROC, average precision and F1 of every label, and their means over the labels.

* AUROC is the probability that a positive image gets a higher output than a negative one, ties counted half: the
  Mann-Whitney statistic, computed from ranks (Hanley and McNeil 1982).
* Average precision is the sum of the precision at every distinct output, weighted by the recall gained there. It is a
  step function without interpolation, as `sklearn.metrics.average_precision_score` computes it.
* Precision, recall and F1 = 2TP / (2TP + FP + FN) are those at the thresholds of the model (van Rijsbergen 1979).

What a label's images do not show is None, never 0 or 0.5: AUROC and average precision without a positive or without a
negative image, recall and F1 without a positive one, precision where no image was answered positive. The mean over the
labels (macro) leaves these out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.floating]


@dataclass(frozen=True)
class LabelMetrics:
    """One label.

    Attributes:
        index, label: its place among the outputs, and its name if it has one.
        count: images for which it is known whether it holds.
        positives: those of them for which it holds.
        answered: those of them that the model calls positive.
        auroc, average_precision, f1, precision, recall: 0 to 1, or None where undefined.
    """

    index: int
    label: str | None
    count: int
    positives: int
    answered: int
    auroc: float | None
    average_precision: float | None
    f1: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class LabelAnswers:
    """What a model answered to N images about L labels.

    Attributes:
        truth: (N, L), 1 where the label holds, 0 where it does not, NaN where nobody knows.
        outputs: (N, L), the more positive the larger; logits and scores rank alike.
        positive: (N, L), what reaches its threshold.
        scores: (N, L), 0 to 1, of which `positive` is made.
    """

    truth: Numbers
    outputs: Numbers
    positive: Bools
    scores: Numbers

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.truth)

    def chosen(self, rows: Sequence[int]) -> LabelAnswers:
        """Return the answers to these images alone."""
        return LabelAnswers(self.truth[rows], self.outputs[rows], self.positive[rows], self.scores[rows])

    def by_label(self, labels: Sequence[str] = ()) -> tuple[LabelMetrics, ...]:
        """Return the metrics of every label, in the order of the outputs."""
        return tuple(self._of_label(index, labels[index] if labels else None) for index in range(self.truth.shape[1]))

    def _of_label(self, index: int, label: str | None) -> LabelMetrics:
        known = ~np.isnan(self.truth[:, index])
        truth, answered = self.truth[known, index] == 1, self.positive[known, index]
        outputs = self.outputs[known, index]
        right, positives, called = (int(np.sum(one)) for one in (truth & answered, truth, answered))
        return LabelMetrics(
            index=index,
            label=label,
            count=len(truth),
            positives=positives,
            answered=called,
            auroc=auroc(truth, outputs),
            average_precision=average_precision(truth, outputs),
            f1=2 * right / (positives + called) if positives else None,
            precision=right / called if called else None,
            recall=right / positives if positives else None,
        )


def macro(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are defined; None if none is.

    >>> macro([0.5, None, 1.0]), macro([None])
    (0.75, None)
    """
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def auroc(truth: Bools, outputs: Numbers) -> float | None:
    """Return the area under the ROC curve of N images; None unless some are positive and some negative.

    >>> auroc(np.array([False, True, True]), np.array([0.1, 0.1, 0.8]))
    0.75

    Args:
        truth: (N,), whether each is positive.
        outputs: (N,), the more positive the larger.
    """
    positives = int(np.sum(truth))
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    _, places, counts = np.unique(outputs, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal outputs share the mean of their ranks, which count from 1
    below = float(ranks[places[truth]].sum()) - positives * (positives + 1) / 2
    return below / (positives * negatives)


def average_precision(truth: Bools, outputs: Numbers) -> float | None:
    """Return the average precision of N images; None unless some are positive and some negative.

    >>> average_precision(np.array([False, True, True]), np.array([0.1, 0.1, 0.8]))
    0.8333333333333333

    Of positive images alone it would be 1, whatever the outputs. Arguments as of `auroc`.
    """
    positives = int(np.sum(truth))
    if positives in (0, len(truth)):
        return None
    _, places, counts = np.unique(-outputs, return_inverse=True, return_counts=True)
    found = np.bincount(places, weights=truth)
    precision = np.cumsum(found) / np.cumsum(counts)
    return float(np.sum(found * precision)) / positives

"""How accurate a classifier is: top-1, top-5, by class, which classes it confuses, and how well it is calibrated.

The expected calibration error (Naeini 2015; Guo et al. 2017) sorts the answers into 15 bins of equal width by the
softmax score of the best class and sums, weighted by the share of images, how far the mean score of each bin is from
the fraction that is right. 0 means that of the answers with a score of 80 %, 80 % are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

TOP: Final = 5
_BINS: Final = 15


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its images, how many of them had it as the best answer, and how often it was the answer at all."""

    index: int
    count: int
    right: int
    answered: int

    @property
    def top1(self) -> float:
        return self.right / self.count


@dataclass(frozen=True)
class Confusion:
    """How many images of the class `truth` were taken for `predicted`."""

    truth: int
    predicted: int
    count: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers with a score in (low, high]: their number, mean score, and the fraction that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Answers:
    """What a model answered to N images.

    Attributes:
        truth: the right class of each, (N,).
        best: the best classes of each, best first, (N, 5), or (N, C) where the model has fewer.
        confidence: softmax score of the best class, (N,), 0 to 1.
    """

    truth: Ints
    best: Ints
    confidence: Doubles

    @property
    def count(self) -> int:
        return len(self.truth)

    @property
    def predicted(self) -> Ints:
        """The best class of each image, (N,)."""
        return self.best[:, 0]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether the best class is the right one, (N,)."""
        return np.asarray(self.predicted == self.truth)

    @property
    def top1(self) -> float:
        return float(self.right.mean())

    @property
    def top5(self) -> float:
        """The fraction of images with their class among the best five."""
        return float((self.best == self.truth[:, None]).any(axis=1).mean())

    def by_class(self) -> tuple[ClassAccuracy, ...]:
        """Return the accuracy of every class that has images, in order."""
        return tuple(
            ClassAccuracy(int(index), int(inside.sum()), int(self.right[inside].sum()), int(answered.sum()))
            for index in np.unique(self.truth)
            for inside, answered in [(self.truth == index, self.predicted == index)]
        )

    def confusion(self) -> tuple[Confusion, ...]:
        """Return the entries of the confusion matrix that are not 0, by true and then by predicted class."""
        pairs, counts = np.unique(np.stack([self.truth, self.predicted]), axis=1, return_counts=True)
        return tuple(
            Confusion(int(truth), int(predicted), int(count))
            for (truth, predicted), count in zip(pairs.T, counts, strict=True)
        )

    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """Return the bins of score that hold answers, from low to high."""
        numbers = np.clip(np.ceil(self.confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
        return tuple(self._bin(number, numbers == number) for number in np.unique(numbers))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1."""
        weighted = (part.count * abs(part.confidence - part.accuracy) for part in self.reliability())
        return sum(weighted) / self.count

    def _bin(self, number: int, inside: npt.NDArray[np.bool_]) -> ReliabilityBin:
        return ReliabilityBin(
            low=number / _BINS,
            high=(number + 1) / _BINS,
            count=int(inside.sum()),
            confidence=float(self.confidence[inside].mean()),
            accuracy=float(self.right[inside].mean()),
        )


@dataclass(frozen=True)
class Published:
    """Accuracy that others published: top-1 and top-5 as fractions (None where not given), and the source."""

    top1: float
    top5: float | None
    source: str


_TORCHVISION: Final = "torchvision, IMAGENET1K_V1 weights"

PUBLISHED: Final = {
    "densenet121": Published(0.74434, 0.91972, _TORCHVISION),
    "densenet161": Published(0.77138, 0.9356, _TORCHVISION),
    "densenet169": Published(0.756, 0.92806, _TORCHVISION),
    "densenet201": Published(0.76896, 0.9337, _TORCHVISION),
    "densenet264": Published(0.7785, None, "the DenseNet paper"),
    "resnet50": Published(0.7613, 0.92862, _TORCHVISION),
    "resnet101": Published(0.77374, 0.93546, _TORCHVISION),
}
"""By the name of the architecture: single crop of 224 pixels, on the 50 000 validation images of ImageNet."""

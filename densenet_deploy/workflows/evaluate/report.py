"""What an evaluation found: accuracy in all and by class, confusions, calibration, unreadable files, disagreements."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.analysis.accuracy import TOP, Answers
from densenet_deploy.errors import printable
from densenet_deploy.runtime.image_folders import BadImage
from densenet_deploy.runtime.runner import Placement

_LISTED: Final = 3
_LISTED_FILES: Final = 20


@dataclass(frozen=True)
class Disagreement:
    """An image that two models take for different classes, with the softmax score of each."""

    file: Path
    truth: int
    first: int
    first_score: float
    second: int
    second_score: float

    def to_json(self) -> dict[str, object]:
        """Return the disagreement with plain types."""
        return dataclasses.asdict(self) | {"file": str(self.file)}


@dataclass(frozen=True)
class SecondOpinion:
    """What the `report` of another model says to the `shared` images that both could read."""

    report: EvaluateReport
    shared: int
    disagreements: tuple[Disagreement, ...]

    @property
    def agreement(self) -> float | None:
        """The fraction of images that both take for the same class, rightly or wrongly; None where none is shared."""
        return 1 - len(self.disagreements) / self.shared if self.shared else None

    @property
    def only_first_right(self) -> int:
        return sum(found.first == found.truth for found in self.disagreements)

    @property
    def only_second_right(self) -> int:
        return sum(found.second == found.truth for found in self.disagreements)

    def to_json(self) -> dict[str, object]:
        """Return the comparison with plain types."""
        placement = self.report.placement
        return {
            "model": str(self.report.model),
            "top1": self.report.top1,
            "top5": self.report.top5,
            "count": self.report.count,
            "images_per_second": self.report.images_per_second,
            "calibration_error": self.report.answers.calibration_error,
            "backend": placement.backend,
            "precision": placement.precision,
            "shared": self.shared,
            "top1_agreement": self.agreement,
            "only_first_right": self.only_first_right,
            "only_second_right": self.only_second_right,
            "disagreements": [found.to_json() for found in self.disagreements],
        }


@dataclass(frozen=True)
class EvaluateReport:
    """The `answers` of `model` to `files`, the images that could be read, and what surrounds them.

    `classes` is None where the model does not say how many it has; `labels` may be empty.
    """

    model: Path
    answers: Answers
    files: tuple[Path, ...]
    classes: int | None
    labels: tuple[str, ...]
    seconds: float
    bad: tuple[BadImage, ...]
    placement: Placement
    notes: tuple[str, ...]
    against: SecondOpinion | None = None

    @property
    def top1(self) -> float:
        """The fraction, 0 to 1, of images whose class was the best."""
        return self.answers.top1

    @property
    def top5(self) -> float | None:
        """The fraction whose class was among the five best; None where the model has five classes or fewer."""
        return None if self.classes is not None and self.classes <= TOP else self.answers.top5

    @property
    def count(self) -> int:
        return self.answers.count

    @property
    def images_per_second(self) -> float:
        """Decoding and preparing included."""
        return self.count / self.seconds

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "model": str(self.model),
            "top1": self.top1,
            "top5": self.top5,
            "count": self.count,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "calibration_error": self.answers.calibration_error,
            "reliability": [dataclasses.asdict(part) for part in self.answers.reliability()],
            "classes": [
                {**dataclasses.asdict(part), "label": self._label(part.index), "top1": part.top1}
                for part in self.answers.by_class()
            ],
            "confusion": [dataclasses.asdict(entry) for entry in self.answers.confusion()],
            "bad": [{"file": str(bad.path), "reason": bad.error.why} for bad in self.bad],
            "against": None if self.against is None else self.against.to_json(),
            "backend": self.placement.backend,
            "precision": self.placement.precision,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2%}"
        return "\n".join(
            [
                f"top-1 {self.top1:.2%}{top5} on {self.count} images",
                f"calibration error {self.answers.calibration_error:.2%}",
                *self._weak_classes(),
                *self._confusions(),
                f"{self.images_per_second:.1f} images a second, decoding included ({self.placement})",
                *(f"not read: {bad.error}" for bad in self.bad),
                *self._disagreements(),
            ]
        )

    def _label(self, index: int) -> str | None:
        return self.labels[index] if self.labels else None

    def _name(self, index: int) -> str:
        return printable(self._label(index) or f"class {index}", 40)

    def _weak_classes(self) -> list[str]:
        wrong = [part for part in self.answers.by_class() if part.right < part.count]
        weakest = sorted(wrong, key=lambda part: part.top1)[:_LISTED]
        told = (f"{self._name(part.index)} ({part.top1:.1%} of {part.count})" for part in weakest)
        return [f"weakest classes: {', '.join(told)}"] if weakest else []

    def _confusions(self) -> list[str]:
        wrong = [entry for entry in self.answers.confusion() if entry.truth != entry.predicted]
        worst = sorted(wrong, key=lambda entry: -entry.count)[:_LISTED]
        told = (f"{self._name(entry.truth)} for {self._name(entry.predicted)} ({entry.count})" for entry in worst)
        return [f"most often mistaken: {', '.join(told)}"] if worst else []

    def _disagreements(self) -> list[str]:
        other = self.against
        if other is None:
            return []
        found = other.disagreements
        agreement = "no image in common" if other.agreement is None else f"{other.agreement:.2%} agreement"
        alone = f"right alone: {other.only_first_right} and {other.only_second_right}"
        title = f"against {printable(other.report.model)}: top-1 {other.report.top1:.2%}, {agreement}, {alone}"
        more = len(found) - _LISTED_FILES
        rest = [f"… and {more} more, all with --json"] if more > 0 else []
        return [title, *map(self._disagreement, found[:_LISTED_FILES]), *rest]

    def _disagreement(self, found: Disagreement) -> str:
        first = f"{self._name(found.first)} ({found.first_score:.0%})"
        second = f"{self._name(found.second)} ({found.second_score:.0%})"
        return f"  {printable(found.file)}: {self._name(found.truth)}, taken for {first} and {second}"

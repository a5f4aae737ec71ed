"""Evaluate: top-1 and top-5 on a tree of labelled pictures, one folder a class."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy.errors import DataError
from densenet_deploy.options import require_range
from densenet_deploy.pipeline.load import open_model, untrained_note
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.runtime.image_folders import BadImage, LabelledImage, ReadableImages, find_labelled_images
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.runner import Placement, RunnerOptions

Picture = tuple[Path, LoadedImage]


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate: pictures a batch, and how many pictures may be unreadable before it is an error."""

    batch: int = 16
    max_bad: int = 0

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 4096)
        require_range("max-bad", self.max_bad, 0, 10**9)


@dataclass(frozen=True)
class EvaluateReport:
    """Fractions 0 to 1 of `count` readable pictures whose class was the best, or among the five best.

    `top5` is None where the model has five classes or fewer.
    """

    top1: float
    top5: float | None
    count: int
    seconds: float
    bad: tuple[BadImage, ...]
    placement: Placement
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "count": self.count,
            "images_per_second": self.count / self.seconds,
            "seconds": self.seconds,
            "bad": [{"file": str(bad.path), "reason": bad.error.why} for bad in self.bad],
            "backend": self.placement.backend,
            "precision": self.placement.precision,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2%}"
        return "\n".join(
            [
                f"top-1 {self.top1:.2%}{top5} on {self.count} pictures",
                f"{self.count / self.seconds:.1f} pictures a second, decoding included ({self.placement})",
                *(f"not read: {bad.error}" for bad in self.bad),
            ]
        )


def evaluate(
    model: Path,
    data: Path,
    options: EvaluateOptions | None = None,
    *,
    backend: str | None = None,
    device: str | None = None,
    runner_options: RunnerOptions | None = None,
) -> EvaluateReport:
    """Measure accuracy on `data`, which holds one folder of pictures a class.

    Raises:
        DataError: if the folders do not fit the model's classes, or more than `max_bad` pictures cannot be read.
        InputError: if the model cannot be used.
        BackendError: if the backend or device cannot be had.
    """
    options = options or EvaluateOptions()
    with open_model(model, backend, device, runner_options) as runner:
        classifier = Classifier(runner)
        labelled = find_labelled_images(data, classifier.labels or None)
        classes = runner.outputs[0].shape[1]
        _check_classes(data, labelled, classes, by_name=bool(classifier.labels))
        start = time.perf_counter()
        ranks, bad = _ranks(classifier, labelled, options)
        seconds = time.perf_counter() - start
        if not ranks:
            raise DataError(data, "holds no picture that can be read", "check the files")
        return EvaluateReport(
            top1=sum(rank == 0 for rank in ranks) / len(ranks),
            top5=None if classes is not None and classes <= 5 else sum(rank < 5 for rank in ranks) / len(ranks),
            count=len(ranks),
            seconds=seconds,
            bad=bad,
            placement=runner.placement,
            notes=(*untrained_note(runner.manifest), *classifier.assumptions),
        )


def _check_classes(data: Path, labelled: tuple[LabelledImage, ...], classes: int | None, *, by_name: bool) -> None:
    """Without labels folders are classes by their order, so there must be as many; with labels there may be fewer."""
    found = 1 + max(image.index for image in labelled)
    if classes is not None and (found > classes or (found < classes and not by_name)):
        raise DataError(data, f"has {found} class folders, the model {classes} classes", "give one folder a class")


def _ranks(
    classifier: Classifier, labelled: tuple[LabelledImage, ...], options: EvaluateOptions
) -> tuple[list[int], tuple[BadImage, ...]]:
    """For every readable picture, where its class stands among the five best (5 if it does not)."""
    truth = {image.path: image.index for image in labelled}
    readable = ReadableImages(truth, options.max_bad)
    ranks = [rank for batch in _batches(readable, options.batch) for rank in _ranks_of_batch(classifier, batch, truth)]
    return ranks, tuple(readable.bad)


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    iterator = iter(pictures)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _ranks_of_batch(classifier: Classifier, batch: list[Picture], truth: dict[Path, int]) -> list[int]:
    predictions = classifier.classify_batch([image for _, image in batch], top_k=5)
    best = [[score.index for score in prediction.top] for prediction in predictions]
    return [five.index(truth[path]) if truth[path] in five else 5 for (path, _), five in zip(batch, best, strict=True)]

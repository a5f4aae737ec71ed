"""Predict: classify images, folders of images and glob patterns with any model."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import DataError, InputError, UsageError, printable
from densenet_deploy.model import InputDescription, untrained_note
from densenet_deploy.records import fields_to_plain
from densenet_deploy.reports import Report
from densenet_deploy.runtime.classifier import Classifier, Number, Prediction, Score, Vector
from densenet_deploy.runtime.image_folders import PreparedImages, find_images
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.workflows.load import LoadOptions, input_of, load


@dataclass(frozen=True)
class FilePrediction:
    """What the model says about one image: `top` classes or labels, `values` or `features`; or the `error`."""

    file: str
    top: tuple[Score, ...] = ()
    values: tuple[Number, ...] = ()
    features: Vector | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with plain types; what the task does not have is left out."""
        facts = fields_to_plain(self)
        return {name: value for name, value in facts.items() if name in ("file", "top") or value}

    def __str__(self) -> str:
        answer = printable(self.error) if self.error is not None else self._answer()
        return "\n".join([printable(self.file), *([answer] if answer else [])])

    def _answer(self) -> str:
        return str(Prediction(self.top, self.values, self.features))


@dataclass(frozen=True, kw_only=True)
class PredictReport(Report):
    """A prediction for every image, and what ran it.

    Attributes:
        task: what the outputs mean.
        predictions: in the order of the images.
        bad: how many images could not be read.
        input: how images were prepared.
    """

    kind: ClassVar[str] = "run"
    derived: ClassVar[tuple[str, ...]] = ("bad",)

    task: str
    predictions: tuple[FilePrediction, ...]
    backend: str
    version: str
    device: str
    provider: str
    precision: str
    threads: int
    input: InputDescription | None = None

    @property
    def bad(self) -> int:
        """Number of images that could not be read."""
        return sum(prediction.error is not None for prediction in self.predictions)

    @property
    def failure(self) -> InputError | None:
        """The error to end a command with: that of the first bad image, if there is one."""
        for prediction in self.predictions:
            if prediction.error is not None:
                why = f"{prediction.error} ({self.bad} of {len(self.predictions)} images could not be read)"
                return DataError(prediction.file, why, "repair or remove it, or raise --max-bad")
        return None

    def to_text(self) -> str:
        """Return lines for people."""
        words = (f"{self.backend} {self.version}", self.provider, self.device, self.precision)
        ran = ", ".join((*words, f"{self.threads} threads"))
        return "\n".join([*map(str, self.predictions), f"({ran})"])


def predict(
    source: Any,
    images: StrPath | Iterable[StrPath],
    *,
    top_k: int = 5,
    fast_decode: bool = False,
    backend: str | None = None,
    device: str | None = None,
    options: RunnerOptions | None = None,
    **stated: Unpack[LoadOptions],
) -> PredictReport:
    """Return the `top_k` best classes of every image; one that cannot be read costs only its own prediction.

    >>> predict("digits.onnx", "held_out/7").predictions[0].top[0].label           # doctest: +SKIP
    '7'

    Args:
        source: whatever `load` takes.
        images: image files, folders (searched directly and in their class folders) and glob patterns.
        top_k: number of classes per image.
        fast_decode: decode JPEGs at a reduced scale: faster, and not exact (see `Classifier`).
        backend: see `open_runner`.
        device: see `open_runner`.
        options: see `RunnerOptions`.
        **stated: facts about the model; see `load`.

    Raises:
        UsageError: if `top_k` is below 1, or a pattern matches nothing.
        InputError: if the model cannot be used, or a pattern matches nothing.
        BackendError: if the backend or device is not available.
    """
    if top_k < 1:
        raise UsageError(f"top-k={top_k}", "is out of range", "ask for at least 1 class")
    paths = list(image_paths([images] if isinstance(images, (str, os.PathLike)) else images))
    model = load(source, **stated)
    options = options or RunnerOptions()
    if len(paths) > 1:  # idle threads of the backend must not keep a core from those that decode
        options = dataclasses.replace(options, spin=False)
    with model.runner(backend, device, options) as runner:
        classifier = Classifier(runner, fast=fast_decode)
        predictions, remarks = _classified(classifier, paths, top_k)
        placement = dataclasses.asdict(runner.placement) | {
            "notes": (
                *model.notes,
                *untrained_note(runner.manifest),
                *classifier.assumptions,
                *fast_decode_note(classifier),
                *remarks,
            )
        }
        described = input_of(model, fast_decode=fast_decode) if model.manifest is not None else None
        task = classifier.meaning.task
        return PredictReport(task=task, predictions=tuple(predictions), input=described, **placement)


def fast_decode_note(classifier: Classifier) -> tuple[str, ...]:
    """Return the line that says that images were decoded fast, or nothing."""
    if not classifier.fast:
        return ()
    return ("images were decoded fast: JPEGs at a reduced scale, large images averaged over blocks; not exact",)


def image_paths(sources: Iterable[StrPath]) -> Iterator[Path]:
    """Yield the images that files, folders and glob patterns name, in that order.

    Raises:
        DataError: if a folder holds no images.
        InputError: if a pattern matches nothing.
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from find_images(path)
        elif path.exists() or not glob.has_magic(os.fspath(source)):
            yield path
        else:
            found = sorted(glob.glob(os.fspath(source), recursive=True))  # noqa: PTH207 - takes absolute patterns too
            if not found:
                raise InputError(source, "matches no file", "check the pattern")
            for match in map(Path, found):
                yield from find_images(match) if match.is_dir() else (match,)


def _classified(classifier: Classifier, paths: Sequence[Path], top_k: int) -> tuple[list[FilePrediction], list[str]]:
    images = PreparedImages(paths, classifier.preprocessing, max_bad=None, fast=classifier.fast)
    found = {path: classifier.classify(image, top_k) for path, image in images}
    errors = {bad.path: bad.error.why for bad in images.bad}
    predictions = [
        _of_file(path, found[path]) if path in found else FilePrediction(str(path), error=errors[path])
        for path in paths
    ]
    return predictions, [f"{path}: {note}" for path in paths if path in found for note in found[path].notes]


def _of_file(path: Path, found: Prediction) -> FilePrediction:
    return FilePrediction(str(path), found.top, found.values, found.features)

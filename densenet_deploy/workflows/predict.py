"""Predict: classify images, folders of images, glob patterns and tables of paths with any model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Unpack, overload

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import DataError, InputError, UsageError, counted, printable
from densenet_deploy.options import or_default
from densenet_deploy.records import fields_to_plain
from densenet_deploy.runtime.classifier import Classifier, Number, Prediction, Score, Vector
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.image_folders import computed_ahead
from densenet_deploy.runtime.image_urls import read_named_image
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.workflows.batch import BatchJobOptions, BatchReport, run_batch
from densenet_deploy.workflows.image_report import RanReport, described_input, remarks
from densenet_deploy.workflows.image_sources import image_names
from densenet_deploy.workflows.load import LoadOptions, load
from densenet_deploy.workflows.stages import Listener, in_notebook

_AHEAD: Final = 32


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
class PredictReport(RanReport):
    """A prediction for every image, and what ran it.

    Attributes:
        task: what the outputs mean.
        predictions: in the order of the images.
        bad: how many images could not be read.
    """

    kind: ClassVar[str] = "run"
    derived: ClassVar[tuple[str, ...]] = ("bad",)

    task: str
    predictions: tuple[FilePrediction, ...]

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
        return "\n".join([*map(str, self.predictions), f"({self.ran}, {counted(self.threads, 'thread')})"])


class PredictOptions(LoadOptions, total=False):
    """How images are classified, as keywords of `predict`, and what `load` takes."""

    top_k: int
    fast_decode: bool
    backend: str | None
    device: str | None
    options: RunnerOptions | None
    progress: Listener


@overload
def predict(
    source: Any,
    images: StrPath | Iterable[StrPath],
    *,
    out: None = None,
    job: None = None,
    **how: Unpack[PredictOptions],
) -> PredictReport: ...


@overload
def predict(
    source: Any,
    images: StrPath | Iterable[StrPath],
    *,
    out: StrPath,
    job: BatchJobOptions | None = None,
    **how: Unpack[PredictOptions],
) -> BatchReport: ...


def predict(
    source: Any,
    images: StrPath | Iterable[StrPath],
    *,
    out: StrPath | None = None,
    job: BatchJobOptions | None = None,
    top_k: int = 5,
    fast_decode: bool = False,
    backend: str | None = None,
    device: str | None = None,
    options: RunnerOptions | None = None,
    progress: Listener = in_notebook,
    **stated: Unpack[LoadOptions],
) -> PredictReport | BatchReport:
    """Return the `top_k` best classes of every image; one that cannot be read costs only its own prediction.

    With `out` it is a batch job: workers write a row for every image to the disk, and a `BatchReport` comes back (see
    docs/how-to/batch.md). That takes any number of images; without `out` all predictions are in memory.

    >>> predict("digits.onnx", "held_out/7").predictions[0].top[0].label
    '7'
    >>> predict("digits.onnx", "held_out", out="rows.csv", job=BatchJobOptions(force=True)).rows
    360

    Args:
        source: whatever `load` takes. A batch job opens it once in each worker; of a module in memory it takes a known
            DenseNet, or what `export` made of it.
        images: image files, folders (searched directly and in their class folders), glob patterns, CSV or Parquet files
            with a column `file`, and URLs that fsspec reads.
        out: a folder for shards of rows, or a `.parquet`, `.csv` or `.jsonl` file.
        job: how the batch job is cut and run; see `BatchJobOptions`.
        top_k: number of classes per image.
        fast_decode: decode JPEGs at a reduced scale: faster, and not exact (see `Classifier`).
        backend: see `open_runner`.
        device: see `open_runner`.
        options: see `RunnerOptions`.
        progress: of a batch job: called with the number of images done.
        **stated: facts about the model; see `load`.

    Raises:
        UsageError: if `top_k` is below 1, or `job` is given without `out`.
        InputError: if the model cannot be used, a pattern matches nothing, or a table names no images.
        OutputExistsError: if `out` holds a job that is neither resumed nor replaced, or something else.
        DataError: if the job in `out` was begun with something else.
        BackendError: if the backend or device is not available, or there are too few CPUs for the workers.
        ResourceError: if a shard cannot be written.
    """
    if top_k < 1:
        raise UsageError(f"top-k={top_k}", "is out of range", "ask for at least 1 class")
    if out is not None:
        choice: dict[str, Any] = {"backend": backend, "device": device, "options": options, "progress": progress}
        return run_batch(source, images, out, job, top_k=top_k, fast_decode=fast_decode, **choice, **stated)
    if job is not None:
        raise UsageError("job", "has no place for its rows", "name one with out")
    options, names = or_default(options, RunnerOptions), image_names(images)
    model = load(source, **stated)
    if len(names) > 1:  # idle threads of the backend must not keep a core from those that decode
        options = dataclasses.replace(options, spin=False)
    with model.runner(backend, device, options) as runner:
        classifier = Classifier(runner, fast=fast_decode)
        predictions, of_images = _classified(classifier, names, top_k)
        notes = (*remarks(classifier, runner.manifest, model.notes), *of_images)
        return PredictReport(
            task=classifier.meaning.task,
            predictions=tuple(predictions),
            input=described_input(classifier, runner.manifest),
            **dataclasses.asdict(runner.placement) | {"notes": notes},
        )


def _classified(classifier: Classifier, names: Sequence[str], top_k: int) -> tuple[list[FilePrediction], list[str]]:
    read = functools.partial(read_named_image, preprocessing=classifier.preprocessing, fast=classifier.fast)
    predictions: list[FilePrediction] = []
    notes: list[str] = []
    with contextlib.closing(computed_ahead(read, names, ahead=_AHEAD, threads=usable_cpus())) as images:
        for name, result in images:
            try:
                image = result.result()
            except InputError as exc:
                predictions.append(FilePrediction(name, error=exc.why))
                continue
            found = classifier.classify(image, top_k)
            predictions.append(FilePrediction(name, found.top, found.values, found.features))
            notes += [f"{name}: {note}" for note in found.notes]
    return predictions, notes

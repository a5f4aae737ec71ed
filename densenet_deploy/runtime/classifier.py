"""Images in, named classes out.

>>> classify = Classifier.open("artifacts/densenet121.onnx")      # doctest: +SKIP
>>> print(classify("cat.jpg", top_k=2))      # doctest: +SKIP
 62.1 %  tabby
 20.3 %  tiger cat
"""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, overload

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import StrPath, os_errors_about
from densenet_deploy.errors import DataError, FeedError, ModelFileError, UsageError, printable
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.records import fields_to_plain
from densenet_deploy.runtime.batching import fixed_batch, input_size, run_batched
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.images import ImageSource, load_image
from densenet_deploy.runtime.preprocess import default_preprocessing, prepare_batch
from densenet_deploy.runtime.runner import ModelSource, Runner, RunnerOptions, open_runner

_SUM_TOLERANCE: Final = 1e-3  # a thousand float16 scores sum to 1 within this
_LARGEST_BATCH: Final = 32


@dataclass(frozen=True)
class Score:
    """One class: its `index` among the outputs, its `label` if the model has labels, its softmax `score` in 0..1."""

    index: int
    label: str | None
    score: float

    def __str__(self) -> str:
        return f"{100 * self.score:5.1f} %  {self.name}"

    @property
    def name(self) -> str:
        """The label in printable characters, or `class 7`."""
        return f"class {self.index}" if self.label is None else printable(self.label)


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first (of equal scores the lower index first).

    `notes` say what was lost in reading the image. A prediction prints as a table, also in a notebook.
    """

    top: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with plain types, ready for `json.dumps`."""
        return fields_to_plain(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self.top))

    def _repr_html_(self) -> str:
        """Return a table for a notebook, with the notes below it."""
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(score.name)}</td><td>{score.score:.1%}</td></tr>"
            for score in self.top
        )
        notes = "".join(f"<div><em>note: {html.escape(printable(note))}</em></div>" for note in self.notes)
        return f"<table><tr><th style='text-align:left'>class</th><th>score</th></tr>{rows}</table>{notes}"


class Classifier:
    """Classify images with a runner, which it owns and closes. Safe to use from many threads.

    >>> with Classifier.open("artifacts/densenet121.onnx") as classify:      # doctest: +SKIP
    ...     classify("cat.jpg").top[0].label
    'tabby'

    Args:
        runner: of a model with one image input.
        preprocessing: how images are prepared; None takes the manifest's.
        labels: names of the classes in the order of the outputs, or the path of a text file; None: the manifest's.

    Attributes:
        preprocessing: how images are prepared.
        labels: names of the classes, or empty.
        assumptions: sentences on what had to be assumed, because the model does not state it.

    Raises:
        ModelFileError: if the model does not take images, or does not return logits.
        FeedError: if it takes images of another size than the preprocessing produces.
        DataError: if the number of labels is not that of the classes.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | StrPath | None = None,
    ) -> None:
        self._runner = runner
        size, manifest = input_size(runner), runner.manifest
        task = manifest.task if manifest else None
        _require_classes(task)
        self._is_multilabel, self._is_known = task == "multilabel", manifest is not None and not manifest.is_third_party
        self._output = _logits_output(runner.outputs)
        if self._output.shape[1] == 1 and not self._is_multilabel:
            fix = "state the task multilabel if it is a yes or no, or use runner.run()"
            raise ModelFileError(self._output, "is one number, not scores of classes", fix)
        known = preprocessing or (manifest.preprocessing if manifest else None)
        self.preprocessing = known or default_preprocessing(size or Preprocessing.image_size)
        assumed = (
            f"the model does not say how to prepare images: ImageNet's preprocessing is assumed ({self.preprocessing})"
        )
        self.assumptions = () if known else (assumed,)
        self.labels = (manifest.labels if manifest else ()) if labels is None else _labels_from(labels)
        _check_size(size, self.preprocessing.image_size)
        _check_labels(self.labels, self._output.shape[1])

    @classmethod
    def open(
        cls,
        source: ModelSource,
        backend: str | None = None,
        device: str | None = None,
        options: RunnerOptions | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | StrPath | None = None,
    ) -> Self:
        """Open a model and classify with it. Arguments and errors are those of `open_runner` and of the class."""
        runner = open_runner(source, backend, device, options)
        try:
            return cls(runner, preprocessing=preprocessing, labels=labels)
        except BaseException:
            runner.close()
            raise

    @overload
    def classify(
        self, image: list[ImageSource] | tuple[ImageSource, ...], top_k: int = ...
    ) -> tuple[Prediction, ...]: ...

    @overload
    def classify(self, image: ImageSource, top_k: int = ...) -> Prediction: ...

    def classify(
        self, image: ImageSource | list[ImageSource] | tuple[ImageSource, ...], top_k: int = 5
    ) -> Prediction | tuple[Prediction, ...]:
        """Return the `top_k` best classes of an image, or of each in a list or tuple (all, if the model has fewer).

        >>> classify(["cat.jpg", pil_image, hwc_uint8_array])      # doctest: +SKIP

        Args:
            image: a path, the bytes of a file, an open binary file, a PIL image, or a uint8 array or tensor (H, W, 3)
                in RGB order; or a list or tuple of these.
            top_k: how many classes to return.

        Raises:
            UsageError: if `top_k` is less than 1.
            ImageError: if an image cannot be read.
            FeedError: if an array is not uint8 (H, W, 3).
        """
        if isinstance(image, (list, tuple)):
            return self.classify_batch(image, top_k)
        return self.classify_batch((image,), top_k)[0]

    __call__ = classify

    def classify_batch(self, images: Sequence[ImageSource], top_k: int = 5) -> tuple[Prediction, ...]:
        """Classify several images, in batches. Errors as in `classify`."""
        if top_k < 1:
            raise UsageError(f"top_k={top_k}", "is out of range", "ask for at least 1 class")
        size = fixed_batch(self._runner) or _LARGEST_BATCH
        batches = (images[start : start + size] for start in range(0, len(images), size))
        return tuple(prediction for batch in batches for prediction in self._classified(batch, top_k))

    def logits(self, inputs: Array) -> Array:
        """Return the logits (N, C) of inputs (N, 3, S, S) that `prepare_batch` made.

        Raises:
            ModelFileError: if any is NaN or infinite.
        """
        logits = run_batched(self._runner, inputs)[self._output.name]
        _check_labels(self.labels, logits.shape[1])
        if not np.isfinite(logits).all():
            raise ModelFileError(self._output.name, "holds NaN or Inf", "compare the model with `validate`")
        return logits

    def scores(self, logits: Array) -> Array:
        """Return the scores (C,) from 0 to 1 of one image's outputs (C,).

        Of a `multilabel` model each label has a sigmoid of its own, of any other model the classes share a softmax.
        Outputs of a network that is not known here may be scores already, and are then returned as they are.
        """
        if self._is_multilabel:
            already = not self._is_known and bool(logits.min() >= 0 and logits.max() <= 1)
            return logits if already else _sigmoid(logits)
        return logits if not self._is_known and _are_scores(logits) else _softmax(logits)

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _classified(self, images: Sequence[ImageSource], top_k: int) -> list[Prediction]:
        loaded = [load_image(image) for image in images]
        rows = self.logits(prepare_batch(loaded, self.preprocessing))
        return [Prediction(self._top(row, top_k), image.notes) for row, image in zip(rows, loaded, strict=True)]

    def _top(self, logits: Array, top_k: int) -> tuple[Score, ...]:
        """Rank by logits, since scores far below the best underflow to equal zeros."""
        scores, best = self.scores(logits), np.argsort(-logits, kind="stable")[:top_k]
        return tuple(Score(int(i), self.labels[i] if self.labels else None, float(scores[i])) for i in best)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a UTF-8 text file, one per line; a byte-order mark and Windows line ends are accepted.

    Raises:
        InputError: if the file does not exist.
        DataError: if it is empty, not UTF-8, or has a blank line before its end.
    """
    with os_errors_about(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(path, f"is not UTF-8 at byte {exc.start}", "save it as UTF-8 text") from exc
    if not text.strip():
        raise DataError(path, "is empty", "write one class name per line")
    labels = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if "" in labels:
        raise DataError(path, f"line {labels.index('') + 1} is blank", "write one class name on every line")
    return labels


def _labels_from(labels: Sequence[str] | StrPath) -> tuple[str, ...]:
    return read_labels(Path(labels)) if isinstance(labels, (str, os.PathLike)) else tuple(labels)


def _require_classes(task: str | None) -> None:
    if task in ("regression", "features"):
        why = f"is a {task} model: its outputs are not scores"
        raise ModelFileError("model", why, "use open_runner() and read the outputs")


def _logits_output(outputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """Return the output named `logits`, or the only one of a third-party model if it has two dimensions."""
    named = [spec for spec in outputs if spec.name == "logits"]
    spec = (named or outputs)[0]
    if len(spec.shape) == 2 and (named or (len(outputs) == 1 and spec.name != "features")):
        return spec
    given = ", ".join(map(str, outputs))
    raise ModelFileError(given, "does not include logits", "use runner.run(), or export with --head classifier")


def _check_size(model_size: int | None, image_size: int) -> None:
    if model_size not in (image_size, None):
        why = f"produces images of {image_size} pixels, the model takes {model_size}"
        raise FeedError("preprocessing", why, "give preprocessing with the model's image_size")


def _check_labels(labels: tuple[str, ...], classes: int | None) -> None:
    if labels and classes is not None and len(labels) != classes:
        why = f"hold {len(labels)} names, the model has {classes} classes"
        raise DataError("labels", why, "give one label per class")


def _are_scores(row: Array) -> bool:
    """Whether a row is the result of a softmax: a model may end with one, and a second would flatten the scores."""
    return bool(row.min() >= 0 and abs(row.sum(dtype=np.float64) - 1) < _SUM_TOLERANCE)


def _sigmoid(logits: Array) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) of (C,) logits in float64; below -700, where the exponential would overflow, that of -700."""
    return np.asarray(1 / (1 + np.exp(-np.maximum(logits.astype(np.float64), -700))))


def _softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Softmax of (C,) logits in float64, shifted by the maximum so that no exponential overflows."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    fractions: npt.NDArray[np.float64] = powers / powers.sum()
    return fractions

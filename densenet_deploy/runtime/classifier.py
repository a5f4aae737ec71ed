"""Images in, named classes out.

>>> classify = Classifier.open("artifacts/densenet121.onnx")      # doctest: +SKIP
>>> print(classify("cat.jpg", top_k=2))      # doctest: +SKIP
 62.1 %  tabby
 20.3 %  tiger cat
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import os_errors_about
from densenet_deploy.errors import DataError, FeedError, ModelFileError, UsageError, printable
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.batching import input_size, run_batched
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.images import ImageSource, LoadedImage, load_image
from densenet_deploy.runtime.preprocess import default_preprocessing, prepare_batch
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner

_SUM_TOLERANCE: Final = 1e-3  # a thousand float16 scores sum to 1 within this


@dataclass(frozen=True)
class Score:
    """One class: its `index` among the outputs, its `label` if the model has any, its softmax `score` from 0 to 1."""

    index: int
    label: str | None
    score: float

    def __str__(self) -> str:
        name = f"class {self.index}" if self.label is None else printable(self.label)
        return f"{100 * self.score:5.1f} %  {name}"


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first (of equals the lower index), and what was lost in reading it."""

    top: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.top))


class Classifier:
    """Classify images with a runner, which it owns and closes.

    Preprocessing and labels are those of the model's manifest unless given. Safe to call from many threads.

    Attributes:
        preprocessing: how images are prepared.
        labels: names of the classes, or empty.
        assumptions: sentences on what had to be guessed, because nothing in the model says it.

    Raises:
        ModelFileError: if the model does not take images.
        FeedError: if it takes images of another size than the preprocessing makes.
        ModelFileError: if the model gives no logits.
        DataError: if there are not as many labels as classes.
    """

    def __init__(
        self, runner: Runner, *, preprocessing: Preprocessing | None = None, labels: Sequence[str] | None = None
    ) -> None:
        self._runner = runner
        self._output = _logits_output(runner.outputs)
        size, manifest = input_size(runner), runner.manifest
        known = preprocessing or (manifest.preprocessing if manifest else None)
        self.preprocessing = known or default_preprocessing(size or Preprocessing.image_size)
        self.assumptions = () if known else (_assumption(self.preprocessing),)
        self.labels = tuple(labels if labels is not None else manifest.labels if manifest else ())
        _check_size(size, self.preprocessing.image_size)
        _check_labels(self.labels, self._output.shape[1])

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        backend: str | None = None,
        device: str | None = None,
        options: RunnerOptions | None = None,
    ) -> Self:
        """Open a model file and classify with it. Arguments and errors are those of `open_runner`, and of the class."""
        runner = open_runner(source, backend, device, options)
        try:
            return cls(runner)
        except BaseException:
            runner.close()
            raise

    def classify(self, image: ImageSource | LoadedImage, top_k: int = 5) -> Prediction:
        """Return the `top_k` best classes of one image (all, where the model has fewer).

        Raises:
            UsageError: if `top_k` is under 1.
            ImageError: if the image cannot be read.
        """
        return self.classify_batch((image,), top_k)[0]

    __call__ = classify

    def classify_batch(self, images: Sequence[ImageSource | LoadedImage], top_k: int = 5) -> tuple[Prediction, ...]:
        """Classify images in one run, or in as many as a model of fixed batch size needs. Errors as in `classify`."""
        if top_k < 1:
            raise UsageError(f"top_k={top_k}", "is out of range", "ask for at least 1 class")
        loaded = [image if isinstance(image, LoadedImage) else load_image(image) for image in images]
        if not loaded:
            return ()
        rows = self.logits(prepare_batch(loaded, self.preprocessing))
        return tuple(Prediction(self._top(row, top_k), image.notes) for row, image in zip(rows, loaded, strict=True))

    def logits(self, inputs: Array) -> Array:
        """Return the logits (N, C) of inputs (N, 3, S, S) that `preprocess` made.

        Raises:
            ModelFileError: if one is NaN or infinite.
        """
        logits = run_batched(self._runner, inputs)[self._output.name]
        _check_labels(self.labels, logits.shape[1])
        if not np.isfinite(logits).all():
            raise ModelFileError(self._output.name, "holds NaN or Inf", "compare the model with `validate`")
        return logits

    def scores(self, logits: Array) -> Array:
        """Return the softmax scores (C,) of one image's logits (C,), or those themselves if they already are some."""
        are_scores = self._runner.manifest is None and _are_scores(logits)
        return logits if are_scores else _softmax(logits)

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _top(self, logits: Array, top_k: int) -> tuple[Score, ...]:
        """Rank by logits: far below the best, scores underflow to equal zeros."""
        scores, best = self.scores(logits), np.argsort(-logits, kind="stable")[:top_k]
        return tuple(Score(int(i), self.labels[i] if self.labels else None, float(scores[i])) for i in best)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the class names in a UTF-8 text file, one a line; a byte-order mark and Windows line ends are tolerated.

    Raises:
        InputError: if there is no such file.
        DataError: if it is empty, not UTF-8, or has a blank line before its end.
    """
    with os_errors_about(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(path, f"is not UTF-8 at byte {exc.start}", "save it as UTF-8 text") from exc
    if not text.strip():
        raise DataError(path, "is empty", "write one class name a line")
    labels = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if "" in labels:
        raise DataError(path, f"line {labels.index('') + 1} is blank", "write one class name on every line")
    return labels


def _logits_output(outputs: tuple[TensorSpec, ...]) -> TensorSpec:
    """Return the output called `logits`, or a stranger's only one if it has two dimensions."""
    named = [spec for spec in outputs if spec.name == "logits"]
    spec = (named or outputs)[0]
    if len(spec.shape) == 2 and (named or (len(outputs) == 1 and spec.name != "features")):
        return spec
    given = ", ".join(map(str, outputs))
    raise ModelFileError(given, "holds no logits to classify by", "use runner.run(), or export with --head classifier")


def _assumption(preprocessing: Preprocessing) -> str:
    return f"the model does not say how to prepare images: ImageNet's way at {preprocessing.image_size} pixels is used"


def _check_size(model_size: int | None, image_size: int) -> None:
    if model_size not in (image_size, None):
        why = f"makes images of {image_size} pixels, the model takes {model_size}"
        raise FeedError("preprocessing", why, "give preprocessing with the model's image_size")


def _check_labels(labels: tuple[str, ...], classes: int | None) -> None:
    if labels and classes is not None and len(labels) != classes:
        raise DataError("labels", f"are {len(labels)}, the model has {classes} classes", "give one label a class")


def _are_scores(row: Array) -> bool:
    """Whether a row is what a softmax gives: a model may end with one, and a second would level the scores."""
    return bool(row.min() >= 0 and abs(row.sum(dtype=np.float64) - 1) < _SUM_TOLERANCE)


def _softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Softmax of (C,) logits in float64, shifted by the maximum so that no exponential overflows."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    fractions: npt.NDArray[np.float64] = powers / powers.sum()
    return fractions

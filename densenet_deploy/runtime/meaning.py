"""What the outputs of a model mean: which output answers, its task, and how its numbers become scores.

=============  ===================================================================================================
multiclass     one class of C: softmax scores, unless the graph ends in one
multilabel     C labels that hold or do not: a sigmoid for each, unless the graph has it; positive from its threshold
regression     C numbers, as they are
features       a vector; it has a length and a norm
=============  ===================================================================================================

The task is what the caller or the manifest states. Where neither does, the end of the graph shows it: a Softmax, a
Sigmoid, or one number, which is never a softmax. What is left is assumed to be multiclass, and said so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from densenet_deploy.artifacts import UNKNOWN
from densenet_deploy.errors import ModelFileError, UsageError, printable
from densenet_deploy.manifest import TASKS
from densenet_deploy.options import require_choice
from densenet_deploy.runtime.feeds import Array, TensorSpec
from densenet_deploy.runtime.runner import Runner

_SUM_TOLERANCE: Final = 1e-3  # a thousand float16 scores sum to 1 within this
_DEFAULT_THRESHOLD: Final = 0.5
_ONE_NUMBER: Final = (
    "the model does not state its task: its one number is taken as a regression (--task states another)"
)


@dataclass(frozen=True)
class OutputMeaning:
    """The output that answers, and what its numbers mean.

    Attributes:
        output: the output that answers, (N, C), or what is read as that: (N, C, 1, 1), or one number per image, (N).
        task: one of `manifest.TASKS`.
        activation: `softmax`, `sigmoid` or `none`, where it is known which one the graph ends in.
        thresholds: of a multilabel model, one for all labels or one per label; a label is positive from its own.
        assumptions: sentences on what nobody stated.
    """

    output: TensorSpec
    task: str
    activation: str | None = None
    thresholds: tuple[float, ...] = (_DEFAULT_THRESHOLD,)
    assumptions: tuple[str, ...] = ()

    @classmethod
    def of(cls, runner: Runner, labels: Sequence[str] = (), task: str | None = None) -> Self:
        """Find the meaning of what `runner` returns.

        Args:
            runner: of any model.
            labels: names of the classes, or none: of several outputs, the one with as many columns answers.
            task: what the caller states; None takes what the manifest or the graph says.

        Raises:
            UnknownNameError: if the task is unknown.
            ModelFileError: if no output has one row of numbers per image.
            UsageError: if a softmax is asked of one number, or there is neither one threshold nor one per label.
        """
        if task is not None:
            require_choice("task", task, TASKS)
        manifest = runner.manifest
        output, assumed = _answering(runner, labels)
        is_ours = manifest is not None and not manifest.is_third_party
        found = None if runner.activations is None else runner.activations.get(output.name, "none")
        activation = "none" if found is None and is_ours else None if found == UNKNOWN else found
        stated = task or (manifest.task if manifest is not None else None)
        known = stated or _shown_task(output, activation)
        if known == "regression" and stated is None:
            assumed = (*assumed, _ONE_NUMBER)
        if known is None:
            known = "multiclass"
            if not is_ours:
                assumed = (*assumed, f"the model does not state its task: {known} is assumed (--task states another)")
        if known == "multiclass" and output.shape[1] == 1:
            fix = "state the task multilabel if it is a yes or no, or regression if it is a number"
            raise UsageError("task=multiclass", f"the output {output.name} is one number, not scores of classes", fix)
        thresholds = manifest.thresholds if manifest is not None and known == "multilabel" else ()
        meaning = cls(output, known, activation, thresholds or (_DEFAULT_THRESHOLD,), assumed)
        require_thresholds(meaning.thresholds, meaning.classes)
        return meaning

    @property
    def classes(self) -> int | None:
        """How many classes, labels or numbers there are; None if the model does not say."""
        return self.output.shape[1]

    def rows(self, array: Array) -> Array:
        """Return the output (N, C, …) as (N, C).

        Raises:
            ModelFileError: if it has more than one number per image and class, or any is NaN or infinite.
            UsageError: if there is neither one threshold nor one per label.
        """
        if len(array) and array[0].size != math.prod(array.shape[1:2]):
            why = f"is {array.shape}, not one number per image and class"
            raise ModelFileError(self.output, why, "read it with runner.run()")
        if not np.isfinite(array).all():
            raise ModelFileError(self.output.name, "holds NaN or Inf", "compare the model with `validate`")
        rows = array.reshape(len(array), math.prod(array.shape[1:]))
        require_thresholds(self.thresholds, rows.shape[1])
        return rows

    def scores(self, row: Array) -> Array:
        """Return the scores (C,) from 0 to 1 of one image's outputs (C,); of a regression and features, the outputs.

        Where it is not known how the network ends, numbers that can only be scores are taken as such.
        """
        if self.task == "multiclass":
            return row if self._is_applied(row, _is_distribution) else _softmax(row)
        if self.task == "multilabel":
            return row if self._is_applied(row, _is_within_one) else _sigmoid(row)
        return row

    def positive(self, scores: Array) -> npt.NDArray[np.bool_]:
        """Return which of a multilabel model's labels, (C,), reach their threshold."""
        return np.asarray(scores >= np.array(self.thresholds, scores.dtype))

    def _is_applied(self, row: Array, are_scores: Callable[[Array], bool]) -> bool:
        """Whether the graph has made scores already."""
        return are_scores(row) if self.activation is None else self.activation != "none"


def class_outputs(runner: Runner) -> frozenset[str]:
    """Return the names of the outputs (N, C) whose largest value names a class.

    A model with another task has none. What does not state its task has those that do not show another. An output
    with another width than the labels, or where there are none than `logits`, is something else.
    """
    manifest, rows = runner.manifest, [spec for spec in runner.outputs if len(spec.shape) == 2]
    stated = None if manifest is None else manifest.task
    if stated not in (None, "multiclass"):
        return frozenset()
    other = {"regression", "features"} | ({"multilabel"} if stated is None else set())
    width = len(manifest.labels) if manifest is not None and manifest.labels else None
    width = width or next((spec.shape[1] for spec in rows if spec.name == "logits"), None)
    return frozenset(
        spec.name
        for spec in rows
        if _shown_task(spec, (runner.activations or {}).get(spec.name)) not in other
        and (None in (width, spec.shape[1]) or width == spec.shape[1])
    )


def require_labels(labels: Sequence[str], classes: int | None) -> None:
    """Check that `labels` are empty, or one per class; `classes` None is a number that is not known.

    Raises:
        UsageError: if there are others, whether a caller stated them or a file did.
    """
    if labels and classes is not None and len(labels) != classes:
        raise UsageError("labels", f"{len(labels)} labels for {classes} classes", "give one label per class")


def shared_labels(labels: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """Return each label that several outputs have, with their indices.

    ImageNet's usual names have two cranes and two maillots.

    >>> shared_labels(("crane", "dog", "crane"))
    {'crane': [0, 2]}
    """
    places: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        places.setdefault(label, []).append(index)
    return {label: found for label, found in places.items() if len(found) > 1}


def name_of_output(label: str, index: int, *, is_shared: bool) -> str:
    """Return the printable name of an output: its label, with the index if another output has the same one."""
    return f"{printable(label)} ({index})" if is_shared else printable(label)


def require_thresholds(thresholds: Sequence[float], classes: int | None) -> None:
    """Check that `thresholds` are empty, one for all labels, or one per label. Errors as `require_labels`."""
    if classes is not None and len(thresholds) not in (0, 1, classes):
        why = f"{len(thresholds)} thresholds for {classes} labels"
        raise UsageError("thresholds", why, "give one, or one per label")


def _answering(runner: Runner, labels: Sequence[str]) -> tuple[TensorSpec, tuple[str, ...]]:
    """Return the output that answers, and what had to be assumed to choose it."""
    outputs, batch = runner.outputs, runner.inputs[0].shape[:1]
    rows = [spec for spec in outputs if spec.dtype.kind == "f" and _is_row(spec)]
    if not rows:  # a network that ends in squeeze(1) gives numbers without an axis of classes
        numbers = [spec for spec in outputs if spec.shape == batch and spec.dtype.kind == "f"]
        rows = [TensorSpec(spec.name, (*batch, 1), spec.dtype) for spec in numbers]
    if not rows:
        given = ", ".join(map(str, outputs))
        raise ModelFileError(given, "does not include one row of numbers per image", "read it with runner.run()")
    for spec in rows:
        if any(other.dtype.kind in "iu" and other.shape == spec.shape for other in outputs if other is not spec):
            why = "is a list of the best scores beside the numbers of their classes, not a score for each class"
            raise ModelFileError(spec, why, "read it with runner.run(), or give the file without its TopK")
    named = [spec for spec in rows if spec.name == "logits"]
    labelled = [spec for spec in rows if labels and spec.shape[1] == len(labels)]
    for found in (named, labelled, rows):
        if len(found) == 1:
            return found[0], ()
    names = ", ".join(spec.name for spec in rows)
    return rows[0], (f"of the outputs {names} the first is taken",)


def _is_row(spec: TensorSpec) -> bool:
    """Whether an output is (N, C), or may be read as that."""
    return len(spec.shape) == 2 or (len(spec.shape) > 2 and _is_one_pixel(spec))


def _is_one_pixel(spec: TensorSpec) -> bool:
    """Whether an output (N, C, H, W) has, or may have, one pixel."""
    return all(size in (1, None) for size in spec.shape[2:])


def _shown_task(output: TensorSpec, activation: str | None) -> str | None:
    """Return the task that the network shows by itself."""
    if activation == "sigmoid":
        return "multilabel"
    if activation == "softmax" and output.shape[1] != 1:
        return "multiclass"
    if output.shape[1] == 1:
        return "regression"
    return "features" if output.name == "features" else None


def _is_distribution(row: Array) -> bool:
    """Whether a row is the result of a softmax: a second one would flatten the scores."""
    return bool(row.min() >= 0 and abs(row.sum(dtype=np.float64) - 1) < _SUM_TOLERANCE)


def _is_within_one(row: Array) -> bool:
    return bool(row.min() >= 0 and row.max() <= 1)


def _sigmoid(logits: Array) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) of (C,) logits in float64; below -700, where the exponential would overflow, that of -700."""
    return np.asarray(1 / (1 + np.exp(-np.maximum(logits.astype(np.float64), -700))))


def _softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Softmax of (C,) logits in float64, shifted by the maximum so that no exponential overflows."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    fractions: npt.NDArray[np.float64] = powers / powers.sum()
    return fractions

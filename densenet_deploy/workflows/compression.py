"""What `quantize` and `prune` share: what `--max-drop` and `--min-sqnr` judge by, and what fine-tuning did."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.parity.compare import Parity, worst
from densenet_deploy.runtime.image_folders import find_labelled_images
from densenet_deploy.workflows.evaluation.report import EvaluateReport


def worst_sqnr_db(outputs: Mapping[str, Parity]) -> float:
    """Return the SQNR of the worst output in dB; minus infinity with NaN or Inf."""
    parity = worst(outputs)[1]
    return -float("inf") if parity.nonfinite else parity.sqnr_db


def require_labelled_folder(calibration: Any) -> Path:
    """Return the folder of calibration images that `--max-drop` is judged on.

    Raises:
        UsageError: if it is not a folder, which alone holds labels.
        DataError: if it has no class folders, or an empty one.
    """
    if not isinstance(calibration, (str, os.PathLike)) or not Path(calibration).is_dir():
        why = "holds no labels, which --max-drop needs"
        raise UsageError(calibration, why, "calibrate on a folder with one subfolder per class, or use --min-sqnr")
    find_labelled_images(calibration)
    return Path(calibration)


def accuracy_of(report: EvaluateReport) -> float:
    """Return the figure that is judged.

    Raises:
        DataError: if the images show none.
    """
    if report.accuracy is None or report.accuracy.metric.is_error:
        why = "no label has both positive and negative calibration images, which an AUROC needs"
        raise DataError("--max-drop", why, "calibrate on folders of at least two labels, or use --min-sqnr")
    return report.accuracy.value


def judgement(report: EvaluateReport) -> tuple[str, ...]:
    """Return what `--max-drop` was taken to mean, where that is not top-1."""
    return () if report.task == "multiclass" else ("--max-drop: points of the mean AUROC", *report.notes)


@dataclass(frozen=True)
class Finetuning:
    """What fine-tuning did to a file, the original of which is the float model.

    Attributes:
        images: learnt from.
        held_out: images on which the two SQNRs were measured; nothing was learnt from them.
        steps: batches learnt from.
        seconds: of all of it.
        sqnr_before_db, sqnr_after_db: of the worst output on these images, before and after.
        sqnr_rounded_db: after weights were rounded anew, before the first step; None where they were not.
        seed: of what it drew; the same seed and number of steps give the same file.
        kept: whether the report is about the fine-tuned file. If not, it is about the file as it was before.
        stopped: why it ended, and why the result was not kept.
    """

    images: int
    held_out: int
    steps: int
    seconds: float
    sqnr_before_db: float
    sqnr_after_db: float
    seed: int
    kept: bool
    stopped: str
    sqnr_rounded_db: float | None = None

    def __str__(self) -> str:
        rounded = "" if self.sqnr_rounded_db is None else f" -> {self.sqnr_rounded_db:.1f} (rounded anew)"
        change = f"SQNR {self.sqnr_before_db:.1f}{rounded} -> {self.sqnr_after_db:.1f} dB"
        found = f"{change} on {self.held_out} held-out images"
        what = "" if self.kept else ", not kept"
        learnt = f"{self.steps} steps on {self.images} others in {self.seconds:.0f} s"
        return f"{found}{what}; {learnt}: {self.stopped}"

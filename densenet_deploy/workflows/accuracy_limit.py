"""What `--max-drop` means: which data it takes, which figure is judged, and how that is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.workflows.evaluation.report import EvaluateReport


def require_labelled_folder(calibration: Any) -> Path:
    """Return the folder of calibration images that `--max-drop` is judged on.

    Raises:
        UsageError: if it is not a folder, which alone holds labels.
    """
    if not isinstance(calibration, (str, os.PathLike)) or not Path(calibration).is_dir():
        why = "holds no labels, which --max-drop needs"
        raise UsageError(calibration, why, "calibrate on a folder with one subfolder per class, or use --min-sqnr")
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

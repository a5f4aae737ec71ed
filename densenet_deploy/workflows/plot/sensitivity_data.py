"""What `plot sqnr` is drawn from, read from the JSON of `sensitivity`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity
from densenet_deploy.errors import DataError
from densenet_deploy.workflows.plot.pareto_points import read_report


def sensitivity_data(path: Path) -> SensitivityData:
    """Return the rows of the report, in its order.

    Raises:
        DataError: if the file is no report of `sensitivity`.
    """
    report: Any = read_report(path)
    try:
        rows = tuple(_row(entry) for entry in report["sensitivity"])
        return SensitivityData(sensitivity_title(Path(report["model"]), report["recipe"]), rows, _cost(report["int8"]))
    except (KeyError, TypeError, ValueError) as exc:
        fix = "give what sensitivity printed with --json, or wrote to a .json file"
        raise DataError(path, "is no report of sensitivity", fix) from exc


def sensitivity_title(model: Path, recipe: str) -> str:
    """Return what a figure calls the model."""
    return f"{model.name}, recipe {recipe}"


def _row(entry: Mapping[str, Any]) -> Sensitivity:
    return Sensitivity(
        str(entry["name"]), tuple(map(str, entry["layers"])), _cost(entry["only_int8"]), _cost(entry["only_float"])
    )


def _cost(facts: Mapping[str, Any]) -> Cost:
    """JSON has null for what is infinite, which is read as: nothing was lost."""
    sqnr_db = facts["sqnr_db"]
    return Cost(math.inf if sqnr_db is None else float(sqnr_db), facts["top1"])

"""What `plot sqnr` is drawn from, read from the JSON of `sensitivity`."""

from __future__ import annotations

from pathlib import Path

from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.workflows.sensitivity import SensitivityReport


def sensitivity_data(path: Path) -> SensitivityData:
    """Return the rows of the report, in its order.

    Raises:
        DataError: if the file is not a report of `sensitivity`.
    """
    return SensitivityReport.read(path).plot_data

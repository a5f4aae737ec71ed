"""The figures by name, and how one becomes bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.plots.style import styled
from densenet_deploy.packages import require_packages
from densenet_deploy.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Any], "Figure"]

SUFFIXES: Final = (".png", ".svg")

plots: Final[Registry[Draw]] = Registry("plot", "densenet_deploy.analysis.plots")
"""Name → function from the data that its docstring describes to a figure."""


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        MissingPackageError: if not, with the command that installs what is missing.
    """
    require_packages("plot", "matplotlib")


def draw(name: str, data: object) -> Figure:
    """Return the figure called `name` of `data`, in the common style.

    Raises:
        UnknownNameError: naming the nearest known figure.
        MissingPackageError: if matplotlib is not installed.
    """
    function = plots.get(name)
    require_matplotlib()
    with styled():
        return function(data)


def rendered(figure: Figure, kind: str, description: str) -> bytes:
    """Return `figure` as `png` or `svg`; the same figure gives the same bytes.

    `description` is written into the file, and no date.
    """
    metadata = {"Description": description} | ({"Software": None} if kind == "png" else {"Date": None, "Creator": None})
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()

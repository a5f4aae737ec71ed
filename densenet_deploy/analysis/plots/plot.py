"""The figures by name, and their files."""

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

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".svg")

_JPEG_QUALITY: Final = 92

plots: Final[Registry[Draw]] = Registry("plot", "densenet_deploy.analysis.plots")
"""Name → function that draws its data as a figure."""


def draw(name: str, data: object) -> Figure:
    """Return the figure called `name` of `data`, in the common style.

    Raises:
        UnknownNameError: naming the nearest known figure.
        MissingPackageError: if matplotlib is not installed.
    """
    function = plots.get(name)
    require_packages("plot", "matplotlib")
    with styled():
        return function(data)


def rendered(figure: Figure, kind: str, description: str) -> bytes:
    """Return `figure` as `png`, `jpg` or `svg`; the same figure gives the same bytes.

    `description` is written into the file, but no date.
    """
    options: dict[str, Any] = {
        "png": {"metadata": {"Description": description, "Software": None}},
        "svg": {"metadata": {"Description": description, "Date": None, "Creator": None}},
        "jpeg": {"pil_kwargs": {"comment": description.encode(), "quality": _JPEG_QUALITY, "subsampling": 0}},
    }
    name, buffer = "jpeg" if kind == "jpg" else kind, io.BytesIO()
    with styled():
        figure.savefig(buffer, format=name, **options[name])
    return buffer.getvalue()

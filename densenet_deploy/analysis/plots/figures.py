"""How a figure becomes a file: without pyplot, whose state is one for the whole process."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from densenet_deploy.packages import require_packages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH: Final = 150
SUFFIXES: Final = (".png", ".svg")


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        MissingPackageError: if not, with the command that installs what is missing.
    """
    require_packages("plot", "matplotlib")


def drawn(figure: Figure, suffix: str) -> bytes:
    """Return `figure` as the bytes of a `.png` (150 dots an inch) or `.svg` file, without the date of the drawing."""
    file = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(file, format=suffix.removeprefix("."), dpi=DOTS_PER_INCH, facecolor="white", metadata=metadata)
    return file.getvalue()

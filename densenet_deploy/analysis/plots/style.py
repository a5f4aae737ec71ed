"""How all figures look: 1200 pixels wide, quiet axes, colours that colour-blind readers can tell apart.

The colours are those of Okabe and Ito (2008); shades come from viridis, whose lightness rises evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
VERMILLION: Final = "#D55E00"
GREY: Final = "#8A8A8A"
LIGHT_GREY: Final = "#F0F0F0"
INK: Final = "#222222"
SHADES: Final = "viridis"
WIDTH_INCHES: Final = 8.0
_HEAD_INCHES: Final = 0.55

_SETTINGS: Final[dict[str, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "svg.hashsalt": "densenet-deploy",  # names inside an SVG would differ from run to run
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style inside the block, whatever the user's own settings are, and restore those."""
    from matplotlib import style

    with style.context(_SETTINGS, after_reset=True):
        yield


def plain(text: str) -> str:
    r"""Return text that matplotlib shows literally: one line, without formulas between dollar signs.

    >>> plain("a$b$")
    'a\\$b\\$'
    """
    return printable(text).replace("$", r"\$")


def milliseconds(value: float) -> str:
    """Return a time with three significant digits, more for large numbers.

    >>> milliseconds(0.0512), milliseconds(1.257), milliseconds(15.84), milliseconds(1234.5)
    ('0.051', '1.26', '15.8', '1,234')
    """
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def new_figure(title: str, subtitle: str, height_inches: float) -> Figure:
    """Return an empty figure of the common width, with `title` and a line below it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = height_inches + _HEAD_INCHES
    head = _HEAD_INCHES / height
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head), h_pad=0.07, w_pad=0.07)
    figure = Figure(figsize=(WIDTH_INCHES, height), layout=layout)
    left = 0.1 / WIDTH_INCHES
    figure.text(left, 1 - 0.32 * head, plain(title), fontsize=12, fontweight="bold", va="center")
    figure.text(left, 1 - 0.75 * head, subtitle, fontsize=9.5, va="center")
    return figure


def new_axes(figure: Figure, rows: int, columns: int, **options: Any) -> list[Axes]:
    """Return `rows` × `columns` axes, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def lighten_grid(axes: Axes, axis: str) -> None:
    """Show a faint grid along one axis only."""
    axes.grid(visible=True, axis=axis)  # type: ignore[arg-type]

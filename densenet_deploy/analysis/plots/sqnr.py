"""Sensitivity as a figure: one row for each layer or block, in execution order from the top.

Left: the SQNR of the outputs when only that row is INT8, on a stem that starts at the value for the whole network in
INT8: the shorter the stem, the more of the noise comes from this row. Right: the gain of keeping the row in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import GREY, INK, VERMILLION, lighten_grid, new_axes, new_figure, plain
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity, most_sensitive_first, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUBTITLE: Final = (
    "Left: only one in INT8; stems start at the value for everything in INT8. Right: gain of keeping one in FP32"
)
_MARKED: Final = 3
_FEW_ROWS: Final = 16
_Rows = Sequence[Sensitivity]


@dataclass(frozen=True)
class SensitivityData:
    """`rows` in execution order, one for each layer or block, and `whole`: the network with everything in INT8."""

    title: str
    rows: Sequence[Sensitivity]
    whole: Cost


@plots.register("sqnr")
def draw_sqnr(data: SensitivityData) -> Figure:
    """Draw the rows from the top down, without those that are infinite."""
    rows, whole = data.rows, data.whole
    row_inches = 0.3 if len(rows) <= _FEW_ROWS else 0.19
    figure = new_figure(f"INT8 sensitivity: {data.title}", _SUBTITLE, 1.2 + row_inches * len(rows))
    alone, gained = new_axes(figure, 1, 2, sharey=True, width_ratios=(3, 2))
    marked = {row.name for row in most_sensitive_first(rows)[:_MARKED]} if len(rows) > _MARKED else set()
    colours = [VERMILLION if row.name in marked else GREY for row in rows]
    _draw_alone(alone, rows, whole, colours)
    _draw_gained(gained, rows, whole, colours)
    _label_rows(alone, rows, marked)
    return figure


def _draw_alone(axes: Axes, rows: _Rows, whole: Cost, colours: Sequence[str]) -> None:
    values = [_finite(row.only_int8.sqnr_db) for row in rows]
    start = _finite(whole.sqnr_db)
    places = range(len(rows))
    if math.isfinite(start):
        axes.hlines(places, start, values, colors=colours, linewidth=1.2)
        axes.axvline(start, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        label = f"everything in INT8: {start:.1f} dB"
        place = axes.get_xaxis_transform()
        axes.annotate(label, (start, 1), (-2, 3), place, "offset points", fontsize=9, color=INK)
    axes.scatter(values, places, c=colours, s=26, zorder=3)
    _label_values(axes, values, rows, "{:.1f}")
    lowest = f"; coloured: the {_MARKED} lowest" if len(rows) > _MARKED else ""
    _tidy(axes, f"SQNR of the outputs with only this in INT8 (dB)\nlower is more sensitive{lowest}")


def _draw_gained(axes: Axes, rows: _Rows, whole: Cost, colours: Sequence[str]) -> None:
    values = [_finite(row.only_float.sqnr_db - whole.sqnr_db) for row in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.6)
    axes.axvline(0, color=INK, linewidth=1)
    _label_values(axes, values, rows, "{:+.1f}")
    _tidy(axes, "gain with only this in FP32 (dB)")


def _label_values(axes: Axes, values: Sequence[float], rows: _Rows, form: str) -> None:
    """Write the numbers beside the bars, unless there are too many rows."""
    if len(rows) > _FEW_ROWS:
        return
    for place, value in enumerate(values):
        if math.isfinite(value):
            axes.annotate(
                form.format(value).replace("-", "−"),
                (value, place),
                (6 if value >= 0 else -6, 0),
                textcoords="offset points",
                va="center",
                ha="left" if value >= 0 else "right",
                fontsize=8,
                color=INK,
            )


def _label_rows(axes: Axes, rows: _Rows, marked: set[str]) -> None:
    names = [plain(name) for name in short_names([row.name for row in rows])]
    axes.set_yticks(range(len(rows)), names, fontsize=9 if len(rows) <= _FEW_ROWS else 7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(VERMILLION if row.name in marked else INK)


def _tidy(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1)
    axes.spines[:].set_visible(False)
    lighten_grid(axes, "x")


def _finite(number: float) -> float:
    """Return NaN, which is not drawn, for an infinite number."""
    return number if math.isfinite(number) else math.nan

"""Latency against accuracy: the models worth a look joined by a line, the others grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.pareto import ParetoPoint, pareto_front
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, GREY, INK, lighten_grid, new_axes, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SEEN: Final = "Further left is faster, further up more accurate; a bar is the 95 % interval of a latency"

_ROOM_FOR_A_LABEL: Final = 0.35


@dataclass(frozen=True)
class ParetoData:
    """At least one point."""

    title: str
    points: Sequence[ParetoPoint]


@plots.register("pareto")
def draw_pareto(data: ParetoData) -> Figure:
    """Draw the points; hollow where the accuracy was published by others, whiskers where latency has an interval."""
    figure = new_figure(f"Latency and accuracy: {data.title}", _SEEN, 5.0)
    (panel,) = new_axes(figure, 1, 1)
    _scale(panel, data.points)
    front = pareto_front(data.points)
    panel.plot(
        [point.latency_ms for point in front],
        [100 * point.top1 for point in front],
        color=BLUE,
        linewidth=1.2,
        drawstyle="steps-post",
        label="no other is both faster and more accurate",
    )
    for point in data.points:
        _draw_point(panel, point, BLUE if point in front else GREY)
    for point in data.points:
        _label(panel, point, on_front=point in front)
    if any(point.published for point in data.points):
        panel.scatter(
            [], [], s=46, facecolor="white", edgecolor=INK, linewidth=1.5, label="accuracy published, not measured"
        )
    panel.set_xlabel("latency of one call (ms)")
    panel.set_ylabel("top-1 accuracy (%)")
    lighten_grid(panel, "both")
    panel.legend(loc="lower right", fontsize=8.5)
    return figure


def _draw_point(panel: Axes, point: ParetoPoint, colour: str) -> None:
    x, y = point.latency_ms, 100 * point.top1
    if point.interval_ms is not None:
        panel.hlines(y, *point.interval_ms, color=colour, linewidth=3, alpha=0.35)
    face = "white" if point.published else colour
    panel.scatter([x], [y], s=46, facecolor=face, edgecolor=colour, linewidth=1.5, zorder=3)


def _label(panel: Axes, point: ParetoPoint, *, on_front: bool) -> None:
    """Write above the line at the left, or at the right where the axis is near; below it off the front."""
    from matplotlib.patheffects import withStroke

    place = (point.latency_ms, 100 * point.top1)
    along = panel.transAxes.inverted().transform(panel.transData.transform(place))[0]
    at_left = along > _ROOM_FOR_A_LABEL
    panel.annotate(
        plain(point.label),
        place,
        (-7 if at_left else 7, 6 if on_front else -13),
        textcoords="offset points",
        ha="right" if at_left else "left",
        fontsize=8.5,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=4,
    )


def _scale(panel: Axes, points: Sequence[ParetoPoint]) -> None:
    """Leave room around the points, and use a log scale where latencies differ tenfold."""
    latencies = [time for point in points for time in (point.latency_ms, *(point.interval_ms or ()))]
    if max(latencies) > 10 * min(latencies):
        panel.set_xscale("log")
        panel.set_xlim(min(latencies) / 1.4, max(latencies) * 1.4)
    else:
        panel.set_xlim(0, max(latencies) * 1.1)
    accuracies = [100 * point.top1 for point in points]
    room = max(0.2, 0.18 * (max(accuracies) - min(accuracies)))
    panel.set_ylim(min(accuracies) - room, max(accuracies) + room)

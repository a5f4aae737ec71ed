"""Latency against accuracy: the models worth a look in blue, the others grey, each by a number that a list explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.pareto import ParetoPoint, pareto_front
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, GREY, INK, lighten_grid, new_axes, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SEEN: Final = "Further left is faster, further up more accurate; a bar is the 95 % interval of a latency"
_ON_FRONT: Final = "the front"
_OFF_FRONT: Final = "another is as good or better in both"
_PUBLISHED: Final = "hollow: accuracy published, not measured"

_FIGURE_INCHES: Final = 4.2
_LINE_INCHES: Final = 0.22
_LONGEST_NAME: Final = 80
_MOST_STEPS: Final = 10
_HIGH: Final = 0.6  # of the axes' height: above that, numbers stand under their points
_LEAST_SPAN: Final = 2.0  # points of accuracy: a shorter axis makes differences of nothing look like something
_NEAR: Final = 0.035, 0.055  # of the axes' width and height: numbers nearer than that would touch
_POINTS_A_STEP: Final = 12


@dataclass(frozen=True)
class ParetoData:
    """At least one point."""

    title: str
    points: Sequence[ParetoPoint]


@plots.register("pareto")
def draw_pareto(data: ParetoData) -> Figure:
    """Draw the points; hollow where the accuracy was published by others, whiskers where latency has an interval.

    The numbers count from the fastest; the list below says whose they are.
    """
    points = sorted(data.points, key=lambda point: (point.latency_ms, -point.top1))
    list_inches = _LINE_INCHES * (len(points) + 1)
    figure = new_figure(f"Latency and accuracy: {data.title}", _SEEN, _FIGURE_INCHES + list_inches)
    ratios = {"height_ratios": [_FIGURE_INCHES, list_inches]}
    panel, below = new_axes(figure, 2, 1, gridspec_kw=ratios)
    _scale(panel, points)
    _draw(panel, points, pareto_front(points))
    _list(below, points)
    return figure


def _draw(panel: Axes, points: Sequence[ParetoPoint], front: Sequence[ParetoPoint]) -> None:
    if len(front) > 1:
        along, up = [point.latency_ms for point in front], [100 * point.top1 for point in front]
        panel.plot(along, up, color=BLUE, linewidth=1.2, drawstyle="steps-post")
    for point in points:
        _draw_point(panel, point, BLUE if point in front else GREY)
    for number, (point, step) in enumerate(zip(points, _steps(panel, points), strict=True), start=1):
        _number(panel, number, point, step, on_front=point in front)
    explained = [(BLUE, BLUE, _ON_FRONT)]
    explained += [(GREY, GREY, _OFF_FRONT)] if len(front) < len(points) else []
    explained += [("white", INK, _PUBLISHED)] if any(point.published for point in points) else []
    for face, edge, label in explained:
        panel.scatter([], [], s=46, facecolor=face, edgecolor=edge, linewidth=1.5, label=label)
    panel.set_xlabel("latency of one call (ms)")
    panel.set_ylabel("top-1 accuracy (%)")
    lighten_grid(panel, "both")
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    panel.legend(ncols=len(explained), fontsize=8.5, handletextpad=0.2, columnspacing=1.2, **place)


def _draw_point(panel: Axes, point: ParetoPoint, colour: str) -> None:
    x, y = point.latency_ms, 100 * point.top1
    if point.interval_ms is not None:
        panel.hlines(y, *point.interval_ms, color=colour, linewidth=3, alpha=0.35)
    face = "white" if point.published else colour
    panel.scatter([x], [y], s=46, facecolor=face, edgecolor=colour, linewidth=1.5, zorder=3)


def _number(panel: Axes, number: int, point: ParetoPoint, step: int, *, on_front: bool) -> None:
    """Write the number over its point, or under it where `step` is less than 0, that many lines away."""
    from matplotlib.patheffects import withStroke

    away = 6 + _POINTS_A_STEP * (abs(step) - 1)
    panel.annotate(
        str(number),
        (point.latency_ms, 100 * point.top1),
        (0, away if step > 0 else -away),
        textcoords="offset points",
        ha="center",
        va="bottom" if step > 0 else "top",
        fontsize=9,
        fontweight="bold",
        color=BLUE if on_front else INK,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=4,
    )


def _steps(panel: Axes, points: Sequence[ParetoPoint]) -> list[int]:
    """How many lines up, or down where there is more room, each number is written: so that it touches none before it.

    Places are fractions of the axes, so the scales must have been set.
    """
    to_axes = panel.transData + panel.transAxes.inverted()
    taken: list[tuple[float, float]] = []
    steps = []
    for point in points:
        x, y = to_axes.transform((point.latency_ms, 100 * point.top1))
        way = -1 if y > _HIGH else 1
        step = next((one for one in range(1, _MOST_STEPS) if _is_free(x, y + way * one * _NEAR[1], taken)), _MOST_STEPS)
        taken.append((x, y + way * step * _NEAR[1]))
        steps.append(way * step)
    return steps


def _is_free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> bool:
    return not any(abs(x - other) < _NEAR[0] and abs(y - height) < _NEAR[1] - 1e-9 for other, height in taken)


def _list(below: Axes, points: Sequence[ParetoPoint]) -> None:
    """Write what each number stands for, and what can be read off the axes."""
    below.set_axis_off()
    for place, point in enumerate(points):
        y = 1 - (place + 0.5) / len(points)
        said = f"{_shortened(point.label)}: {_milliseconds(point.latency_ms)} ms, {100 * point.top1:.2f} %"
        style: dict[str, Any] = {"va": "center", "transform": below.transAxes, "fontsize": 8.5, "in_layout": False}
        below.text(0.025, y, str(place + 1), ha="right", fontweight="bold", **style)
        below.text(0.04, y, plain(said), **style)


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: backend and threads stand at its end."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _milliseconds(value: float) -> str:
    """Three digits that matter, more of large numbers."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def _scale(panel: Axes, points: Sequence[ParetoPoint]) -> None:
    """Leave room around the points, and use a log scale where latencies differ tenfold."""
    latencies = [time for point in points for time in (point.latency_ms, *(point.interval_ms or ()))]
    if max(latencies) > 10 * min(latencies):
        panel.set_xscale("log")
        panel.set_xlim(min(latencies) / 1.4, max(latencies) * 1.4)
    else:
        panel.set_xlim(0, max(latencies) * 1.1)
    accuracies = [100 * point.top1 for point in points]
    low, high = min(accuracies), max(accuracies)
    room = max(0.18 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    above = 0.06 * (high - low + 2 * room)  # where a point of 100 % is still seen whole
    panel.set_ylim(max(low - room, -above), min(high + room, 100 + above))

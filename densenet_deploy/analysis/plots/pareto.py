"""Latency against accuracy or error: the Pareto front in blue, others grey, each with a number that a list explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.choice import METRICS, Metric, ParetoPoint, is_tied, pareto_front
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILLION,
    lighten_grid,
    milliseconds,
    new_axes,
    new_figure,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUBTITLE: Final = "Further left is faster, further up is more accurate; bars are 95 % intervals of the latency"
_ON_FRONT: Final = "the front"
_TIED: Final = "as fast and as good: intervals overlap"
_OFF_FRONT: Final = "another is as good or better in both"
_PUBLISHED: Final = "accuracy published, not measured"

_FIGURE_INCHES: Final = 4.2
_LINE_INCHES: Final = 0.22
_LONGEST_NAME: Final = 80
_MOST_STEPS: Final = 10
_HIGH: Final = 0.6  # of the axes' height: above that, numbers are written under their points
_LEAST_SPAN: Final = 2.0  # points of a fraction, or % of an error: a shorter axis would exaggerate small differences
_TOUCHING: Final = 0.016, 0.03  # of the axes' width and height: dots nearer than that overlap
_LINE: Final = 0.055  # of the axes' height: numbers nearer than that would touch
_CHARACTER: Final = 0.013  # of the axes' width
_POINTS_A_STEP: Final = 12


@dataclass(frozen=True)
class ParetoData:
    """At least one point, the metric of their merits, and what chose one of them.

    Where all points have numbers, these are those of a table beside the figure, so no list explains them below.
    """

    title: str
    points: Sequence[ParetoPoint]
    metric: Metric = METRICS["top1"]
    chosen_by: str = "tune"


@plots.register("pareto")
def draw_pareto(data: ParetoData) -> Figure:
    """Draw the points: hollow where the accuracy was published by others, with a ring around the chosen one.

    The numbers count from the fastest, unless the points have their own; the list below names the models. Points that
    overlap share one label. Those that only noise keeps from the front are green.
    """
    metric, unit = data.metric, 100 if data.metric.is_percent else 1
    drawn = [replace(point, merit=unit * point.merit) for point in data.points]
    points = sorted(drawn, key=lambda point: (point.latency_ms, point.merit if metric.is_error else -point.merit))
    is_numbered = all(point.number is not None for point in points)
    list_inches = 0.0 if is_numbered else _LINE_INCHES * (len(points) + 1)
    figure = new_figure(
        f"Latency and {'error' if metric.is_error else 'accuracy'}: {data.title}",
        _SUBTITLE,
        _FIGURE_INCHES + list_inches,
    )
    ratios = {"height_ratios": [_FIGURE_INCHES, *([] if is_numbered else [list_inches])]}
    panel, *below = new_axes(figure, len(ratios["height_ratios"]), 1, gridspec_kw=ratios)
    _scale(panel, points, metric)
    _draw(panel, points, metric, data.chosen_by)
    panel.set_ylabel(f"{metric.words} (%)" if metric.is_percent else metric.words)
    values = [f"{milliseconds(point.latency_ms)} ms, {metric.shown(point.merit / unit)}" for point in points]
    for axes in below:
        _list(axes, values, points)
    return figure


def _draw(panel: Axes, points: Sequence[ParetoPoint], metric: Metric, chosen_by: str) -> None:
    front = pareto_front(points, metric)
    tied = [point for point in points if point not in front and is_tied(point, front, metric)]
    if len(front) > 1:
        along, up = [point.latency_ms for point in front], [point.merit for point in front]
        panel.plot(along, up, color=BLUE, linewidth=1.2, drawstyle="steps-post")
    for point in points:
        _draw_point(panel, point, BLUE if point in front else GREEN if point in tied else GREY)
    clusters = _clusters(panel, points)
    for cluster, step in zip(clusters, _steps(clusters), strict=True):
        _number(panel, cluster, step, on_front=any(points[place] in front for place in cluster.places))
    explained = [(BLUE, BLUE, _ON_FRONT)]
    explained += [(GREEN, GREEN, _TIED)] if tied else []
    explained += [(GREY, GREY, _OFF_FRONT)] if len(front) + len(tied) < len(points) else []
    explained += [("white", INK, _PUBLISHED)] if any(point.published for point in points) else []
    explained += [("none", VERMILLION, f"chosen by {chosen_by}")] if any(point.chosen for point in points) else []
    for face, edge, label in explained:
        panel.scatter([], [], s=46, facecolor=face, edgecolor=edge, linewidth=1.5, label=label)
    panel.set_xlabel("latency of one call (ms)")
    lighten_grid(panel, "both")
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    panel.legend(ncols=min(len(explained), 3), fontsize=8.5, handletextpad=0.2, columnspacing=1.2, **place)


def _draw_point(panel: Axes, point: ParetoPoint, colour: str) -> None:
    x, y = point.latency_ms, point.merit
    if point.interval_ms is not None:
        panel.hlines(y, *point.interval_ms, color=colour, linewidth=3, alpha=0.35)
    face = "white" if point.published else colour
    panel.scatter([x], [y], s=46, facecolor=face, edgecolor=colour, linewidth=1.5, zorder=3)
    if point.chosen:
        panel.scatter([x], [y], s=150, facecolor="none", edgecolor=VERMILLION, linewidth=1.5, zorder=3.5)


@dataclass(frozen=True)
class _Cluster:
    """Points whose dots overlap: places in the list, numbers, and their middle, in data and as fractions of axes."""

    places: tuple[int, ...]
    numbers: tuple[int, ...]
    middle: tuple[float, float]
    fractions: tuple[float, float]

    @property
    def label(self) -> str:
        """The numbers of the points, runs of them as a range."""
        runs = [list(run) for _, run in groupby(enumerate(self.numbers), key=lambda pair: pair[1] - pair[0])]
        ends = ((run[0][1], run[-1][1]) for run in runs)
        return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in ends)


def _clusters(panel: Axes, points: Sequence[ParetoPoint]) -> list[_Cluster]:
    """Group the points whose dots overlap; the scales of the axes must have been set."""
    to_axes = panel.transData + panel.transAxes.inverted()
    spots = [tuple(to_axes.transform(_spot(point))) for point in points]
    groups: list[list[int]] = []
    for place, spot in enumerate(spots):
        touching = [group for group in groups if any(_touch(spot, spots[other]) for other in group)]
        for group in touching:
            groups.remove(group)
        groups.append(sorted([place, *(other for group in touching for other in group)]))
    clusters = []
    for group in sorted(groups):
        x, y = (sum(spots[place][axis] for place in group) / len(group) for axis in (0, 1))
        middle = to_axes.inverted().transform((x, y)) if len(group) > 1 else _spot(points[group[0]])
        numbers = sorted(points[place].number or place + 1 for place in group)
        clusters.append(_Cluster(tuple(group), tuple(numbers), (float(middle[0]), float(middle[1])), (x, y)))
    return clusters


def _spot(point: ParetoPoint) -> tuple[float, float]:
    return point.latency_ms, point.merit


def _touch(spot: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) < near for a, b, near in zip(spot, other, _TOUCHING, strict=True))


def _number(panel: Axes, cluster: _Cluster, step: int, *, on_front: bool) -> None:
    """Write the label over its points, or under them where `step` is negative, that many lines away."""
    from matplotlib.patheffects import withStroke

    away = 8 + _POINTS_A_STEP * (abs(step) - 1)
    panel.annotate(
        cluster.label,
        cluster.middle,
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


def _steps(clusters: Sequence[_Cluster]) -> list[int]:
    """How many lines above (or below, negative, where there is more room) each label is written so that none touch."""
    taken: list[tuple[float, float, float]] = []
    steps = []
    for cluster in clusters:
        (x, y), half = cluster.fractions, _CHARACTER * (len(cluster.label) + 1) / 2
        way = -1 if y > _HIGH else 1
        free = (one for one in range(1, _MOST_STEPS) if _is_free(x, y + way * one * _LINE, half, taken))
        step = next(free, _MOST_STEPS)
        taken.append((x, y + way * step * _LINE, half))
        steps.append(way * step)
    return steps


def _is_free(x: float, y: float, half: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return not any(abs(x - other) < half + width and abs(y - height) < _LINE - 1e-9 for other, height, width in taken)


def _list(below: Axes, values: Sequence[str], points: Sequence[ParetoPoint]) -> None:
    """Write which model each number stands for, and its `values`."""
    below.set_axis_off()
    for place, (point, value) in enumerate(zip(points, values, strict=True)):
        y = 1 - (place + 0.5) / len(points)
        name = f"{_shortened(point.label)}{' (chosen)' if point.chosen else ''}"
        style: dict[str, Any] = {"va": "center", "transform": below.transAxes, "fontsize": 8.5, "in_layout": False}
        below.text(0.025, y, str(place + 1), ha="right", fontweight="bold", **style)
        below.text(0.04, y, plain(f"{name}: {value}"), **style)


def _shortened(name: str) -> str:
    """Leave out the middle of a long name: backend and threads are at its end."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _scale(panel: Axes, points: Sequence[ParetoPoint], metric: Metric) -> None:
    """Leave room around the points, and use a log scale where latencies differ tenfold. Small errors are above."""
    latencies = [time for point in points for time in (point.latency_ms, *(point.interval_ms or ()))]
    if max(latencies) > 10 * min(latencies):
        panel.set_xscale("log")
        panel.set_xlim(min(latencies) / 1.4, max(latencies) * 1.4)
    else:
        panel.set_xlim(0, max(latencies) * 1.1)
    merits = [point.merit for point in points]
    low, high = min(merits), max(merits)
    full = 100 if metric.is_percent else 1
    least = _LEAST_SPAN / 100 * (high if metric.is_error else full)
    room = max(0.18 * (high - low), (least - (high - low)) / 2)
    beyond = 0.06 * (high - low + 2 * room)  # where a point at 0 or 100 % is still visible as a whole
    if metric.is_error:
        panel.set_ylim(high + room or 1, max(low - room, -beyond))  # errors of 0 alone have no span
    else:
        panel.set_ylim(max(low - room, -beyond), min(high + room, full + beyond))

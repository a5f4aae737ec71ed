"""The feature-reuse heat map: source layer by target layer, one square a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import LIGHT_GREY, SHADES, new_axes, new_figure
from densenet_deploy.analysis.reuse import ReuseMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEEN: Final = "How strongly a layer's first convolution weighs the channels of each earlier source"


@dataclass(frozen=True)
class ReuseData:
    """The maps of a model called `title`."""

    title: str
    maps: Sequence[ReuseMap]


@plots.register("reuse")
def draw_reuse(data: ReuseData) -> Figure:
    """Draw the maps side by side, two in a row; blank where a target comes before its source."""
    from matplotlib import colormaps

    columns = min(2, len(data.maps))
    rows = math.ceil(len(data.maps) / columns)
    figure = new_figure(f"Feature reuse: {data.title}", _SEEN, 3.35 * rows)
    axes = new_axes(figure, rows, columns)
    shades = colormaps[SHADES].with_extremes(bad=LIGHT_GREY)
    for index, (panel, found) in enumerate(zip(axes, data.maps, strict=False)):
        layers = len(found.weights)
        image = panel.imshow(found.weights, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(f"{found.block}, {layers} layers")
        ticks = _ticks(layers)
        panel.set_xticks([tick - 1 for tick in ticks if tick > 0], [str(tick) for tick in ticks if tick > 0])
        panel.set_yticks(
            [tick for tick in ticks if tick < layers], [str(t) if t else "input" for t in ticks if t < layers]
        )
        panel.set_xlabel("target layer")
        if index % columns == 0:
            panel.set_ylabel("source layer")
    for unused in axes[len(data.maps) :]:
        unused.set_axis_off()
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    bar.set_label("average |weight|, largest of the block = 1")
    bar.outline.set_visible(False)
    return figure


def _ticks(layers: int) -> list[int]:
    """Layer numbers to write, 0 (the input) first: all of few, every fourth or eighth of many."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if layers / step <= 8)
    return [0, *range(step, layers + 1, step)] if step > 1 else list(range(layers + 1))

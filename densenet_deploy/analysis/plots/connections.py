"""The dense connection pattern: an arc from every source to every layer that reads it, one row for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.cost import block_sizes
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import GREY, INK, SHADES, VERMILLION, new_axes, new_figure
from densenet_deploy.manifest import Size
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUBTITLE: Final = "An arc leads from a source to each later layer that reads its channels; colours show the source"


@dataclass(frozen=True)
class ConnectionsData:
    """The architecture of a model called `title`, for images of `image_size` pixels."""

    title: str
    spec: DenseNetSpec
    image_size: Size


@plots.register("connections")
def draw_connections(data: ConnectionsData) -> Figure:
    """Draw one row of nodes for each block: its input, its layers, and its output, which reads all of them."""
    spec, sizes = data.spec, block_sizes(data.spec, data.image_size)
    figure = new_figure(f"Dense connections: {data.title}", _SUBTITLE, 1.95 * len(spec.blocks))
    for block, panel in enumerate(new_axes(figure, len(spec.blocks), 1)):
        layers, size = spec.blocks[block], sizes[block]
        _draw_block(panel, layers)
        count = len(arcs(layers))
        channels = f"{spec.channels_in[block]} to {spec.channels_out[block]} channels of {size[0]}×{size[1]}"
        panel.set_title(f"denseblock{block + 1}: {layers} layers, {count} connections, {channels}")
    return figure


def arcs(layers: int) -> list[tuple[int, int]]:
    """Return (source, target) of every connection in a block of `layers` layers.

    Node 0 is the input of the block, 1 to `layers` are its layers, the last node is its output.

    >>> arcs(1)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(source, target) for target in range(1, layers + 2) for source in range(target)]


def _draw_block(panel: Axes, layers: int) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Arc

    last, shades = layers + 1, colormaps[SHADES]
    for source, target in arcs(layers):
        span = target - source
        arc = Arc(
            ((source + target) / 2, 0),
            span,
            span / last * 1.8,
            theta1=0,
            theta2=180,
            color=shades(0.85 * source / last),
            linewidth=1.2 if layers <= 16 else 0.8,
            alpha=0.75,
        )
        panel.add_patch(arc)
    panel.scatter(range(last + 1), [0] * (last + 1), s=28, color=[VERMILLION, *[INK] * layers, VERMILLION], zorder=3)
    panel.set_xlim(-0.5, last + 0.5)
    panel.set_ylim(-0.08, 0.95)
    step = 1 if layers <= 24 else 4
    numbers = [number for number in range(1, last) if number % step == 0]
    panel.set_xticks([0, *numbers, last], ["in", *map(str, numbers), "out"])
    panel.set_yticks([])
    panel.tick_params(axis="x", length=0, labelcolor=GREY)
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)

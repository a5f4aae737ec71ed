"""Feature reuse: how much each layer of a dense block uses the features of every layer before it, as a map per block.

For a target layer, the average absolute weight of its first convolution on the channels of one source: the input of the
block, or an earlier layer. Averages of one block are divided by its largest, so that blocks compare.
Training makes rows differ; an untrained column is even, and columns fade as the initialization shrinks with the fan-in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import LIGHT_GREY, SHADES, new_axes, new_figure
from densenet_deploy.errors import DataError
from densenet_deploy.variants.spec import DenseNetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = Mapping[str, npt.NDArray[np.floating]]

_SEEN: Final = "How strongly a layer's first convolution weighs the channels of each earlier source"


@dataclass(frozen=True)
class ReuseMap:
    """One block: `weights[source, target]`, 0 to 1, NaN where the target comes before the source.

    Source 0 is the input of the block, source s is layer s; target t is layer t + 1. (L, L) for L layers.
    """

    block: str
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReuseData:
    """The maps of a model called `title`."""

    title: str
    maps: Sequence[ReuseMap]


def reuse_maps(spec: DenseNetSpec, weights: Weights) -> tuple[ReuseMap, ...]:
    """Return a map for each block.

    Args:
        spec: the architecture.
        weights: the weights of every layer's first convolution, (out, in, kernel, kernel), by the layer's name:
            `denseblock1.denselayer1`, …

    Raises:
        DataError: if a layer's weights are missing or do not read the channels that the architecture says.
    """
    return tuple(_map_of(spec, block, weights) for block in range(len(spec.blocks)))


def _map_of(spec: DenseNetSpec, block: int, weights: Weights) -> ReuseMap:
    layers, entering = spec.blocks[block], spec.channels_in[block]
    name = f"denseblock{block + 1}"
    averages = np.full((layers, layers), np.nan)
    for target in range(layers):
        taken = _weights_of(f"{name}.denselayer{target + 1}", weights, entering + target * spec.growth_rate)
        by_channel = np.abs(taken.astype(np.float64)).mean(axis=(0, 2, 3))
        averages[0, target] = by_channel[:entering].mean()
        grown = by_channel[entering:].reshape(target, spec.growth_rate)
        averages[1 : target + 1, target] = grown.mean(axis=1)
    largest = np.nanmax(averages)
    return ReuseMap(name, averages / largest if largest > 0 else averages)


def _weights_of(layer: str, weights: Weights, channels: int) -> npt.NDArray[np.floating]:
    found = weights.get(layer)
    if found is None:
        raise DataError(layer, "has no weights of a first convolution", "plot an FP32 model exported here")
    if found.ndim != 4 or found.shape[1] != channels:
        raise DataError(layer, f"reads {found.shape[1:2]} channels, not {channels}", "plot a model exported here")
    return found


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

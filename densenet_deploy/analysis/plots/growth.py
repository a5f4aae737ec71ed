"""How the features of a DenseNet grow: channels and memory after every layer, from the shapes that a run shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, INK, LIGHT_GREY, ORANGE, lighten_grid, new_axes, new_figure
from densenet_deploy.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYER: Final = re.compile(r"denseblock(\d+)\.denselayer(\d+)")
_FLOAT_BYTES: Final = 4
_MIB: Final = 2**20
_SUBTITLE: Final = "Each layer appends its channels; a transition between blocks drops some and halves height and width"


@dataclass(frozen=True)
class GrowthStep:
    """The features of block number `block` (from 1) behind layer number `layer` (0: what enters the block).

    `channels` of `size` by `size` pixels.
    """

    block: int
    layer: int
    channels: int
    size: int

    @property
    def values(self) -> int:
        """Numbers held for one image."""
        return self.channels * self.size**2


@dataclass(frozen=True)
class GrowthData:
    """The steps of a model called `title`."""

    title: str
    steps: Sequence[GrowthStep]


def growth_steps(shapes: Mapping[str, tuple[int, ...]]) -> tuple[GrowthStep, ...]:
    """Return the steps in execution order.

    Args:
        shapes: (C, H, W) of what was made by `conv0`, by each layer, `denseblock1.denselayer1` and so on, and by each
            transition's convolution, `transition1`; a transition's H and W do not matter.

    Raises:
        DataError: if the shapes of a layer, or of what enters its block, are missing.
    """
    layers = {(int(match[1]), int(match[2])): shapes[name] for name in shapes if (match := _LAYER.fullmatch(name))}
    if not layers:
        raise DataError("growth", "the run shows no dense layer", "plot a DenseNet exported here")
    steps: list[GrowthStep] = []
    for (block, layer), (channels, size, _) in sorted(layers.items()):
        if layer == 1:
            source = "conv0" if block == 1 else f"transition{block - 1}"
            if source not in shapes:
                raise DataError("growth", f"the run does not show {source}", "plot a DenseNet exported here")
            steps.append(GrowthStep(block, 0, shapes[source][0], size))
        steps.append(GrowthStep(block, layer, steps[-1].channels + channels, size))
    return tuple(steps)


@plots.register("growth")
def draw_growth(data: GrowthData) -> Figure:
    """Draw channels above memory over the layers in the order of execution, with a band for each block."""
    figure = new_figure(f"Feature-map growth: {data.title}", _SUBTITLE, 5.2)
    above, below = new_axes(figure, 2, 1, sharex=True)
    place = 0
    for block, group in groupby(data.steps, key=lambda step: step.block):
        steps = list(group)
        places = list(range(place, place + len(steps)))
        if block % 2:
            for panel in (above, below):
                panel.axvspan(places[0] - 0.5, places[-1] + 0.5, color=LIGHT_GREY, linewidth=0)
        channels = [step.channels for step in steps]
        memory = [step.values * _FLOAT_BYTES / _MIB for step in steps]
        above.plot(places, channels, color=BLUE, marker="o", markersize=3, linewidth=1.5)
        below.plot(places, memory, color=ORANGE, marker="o", markersize=3, linewidth=1.5)
        size, middle = steps[0].size, (places[0] + places[-1]) / 2
        above.text(
            middle, 1.02, f"denseblock{block}\n{size}×{size}", transform=above.get_xaxis_transform(), ha="center"
        )
        above.annotate(f"{channels[-1]}", (places[-1], channels[-1]), (-4, 4), textcoords="offset points", ha="right")
        place += len(steps)
    above.set_ylabel("channels")
    below.set_ylabel("features of one image,\nfp32 (MiB)")
    below.set_xlabel("layer in its block (the first point is the input of the block)")
    below.set_xticks(*_ticks(data.steps))
    for panel in (above, below):
        lighten_grid(panel, "y")
        panel.set_ylim(0, 1.12 * panel.dataLim.ymax)
        panel.set_xlim(-0.5, place - 0.5)
        panel.tick_params(labelcolor=INK)
    return figure


def _ticks(steps: Sequence[GrowthStep]) -> tuple[list[int], list[str]]:
    """Return places and numbers of the layers to label: all, or every second, fourth, … if there are many."""
    every = next(every for every in (1, 2, 4, 8, 16, 32, 64) if len(steps) / every <= 26)
    labelled = [(place, step.layer) for place, step in enumerate(steps) if step.layer and step.layer % every == 0]
    return [place for place, _ in labelled], [str(layer) for _, layer in labelled]

"""What each block costs: parameters, multiply-accumulates and the peak of activation memory, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from densenet_deploy.analysis.cost import ModelCost
from densenet_deploy.analysis.memory import ActivationMemory
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, GREEN, GREY, ORANGE, lighten_grid, new_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIB: Final = 2**20


@dataclass(frozen=True)
class CostData:
    """The cost of a model called `title` for one image, and its memory for `batch` images, where that is known."""

    title: str
    cost: ModelCost
    memory: ActivationMemory | None = None
    batch: int = 1


@plots.register("cost")
def draw_cost(data: CostData) -> Figure:
    """Draw one panel for each quantity, with the blocks from top to bottom in execution order."""
    blocks = data.cost.blocks
    total = f"{data.cost.parameters:,} parameters, {data.cost.macs / 1e9:.3f} GMACs per image"
    figure = new_figure(f"Cost by block: {data.title}", total, 1.2 + 0.42 * len(blocks))
    panels = new_axes(figure, 1, 2 if data.memory is None else 3, sharey=True)
    names = [block.name for block in blocks]
    _bars(panels[0], names, [block.parameters / 1e6 for block in blocks], BLUE, "parameters (millions)")
    _bars(panels[1], names, [block.macs / 1e6 for block in blocks], GREEN, "MACs (millions)")
    if data.memory is not None:
        _memory_bars(panels[2], names, data.memory, data.batch)
    panels[0].invert_yaxis()
    return figure


def _bars(panel: Axes, names: Sequence[str], values: Sequence[float], colour: str, label: str) -> None:
    bars = panel.barh(names, values, color=colour, height=0.62)
    panel.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8)
    _finish(panel, max(values), label)


def _memory_bars(panel: Axes, names: Sequence[str], memory: ActivationMemory, batch: int) -> None:
    bus = {block.name: block.bus_bytes / _MIB for block in memory.blocks}
    copies = {block.name: block.copies_bytes / _MIB for block in memory.blocks}
    places = range(len(names))
    for shift, values, colour, label in ((-0.17, copies, GREY, "with copies"), (0.17, bus, ORANGE, "in place")):
        lengths = [values.get(name, 0.0) for name in names]
        bars = panel.barh([place + shift for place in places], lengths, height=0.32, color=colour, label=label)
        panel.bar_label(bars, [_short(length) for length in lengths], padding=3, fontsize=7.5)
    _finish(panel, max(copies.values()), f"peak activations, batch {batch} (MiB)")
    panel.legend(loc="lower right", fontsize=8)


def _finish(panel: Axes, largest: float, label: str) -> None:
    panel.set_xlim(0, largest * 1.3)
    panel.set_xlabel(label)
    panel.tick_params(axis="y", length=0)
    lighten_grid(panel, "x")


def _short(value: float) -> str:
    """Return three significant digits.

    >>> _short(1040.4), _short(2.838), _short(0.0095)
    ('1040', '2.84', '0.0095')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 0.01 else f"{value:.2g}"

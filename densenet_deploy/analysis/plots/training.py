"""Loss and accuracy of a training over its epochs, with the epoch that was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, GREY, ORANGE, lighten_grid, new_axes, new_figure
from densenet_deploy.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TrainingCurves:
    """The epochs of the training called `title`, in order.

    Attributes:
        epochs: their numbers.
        loss: of the training images.
        top1: of the validation images, 0 to 1.
        train_top1: of the training images, augmented as they were; None where images were mixed.
    """

    title: str
    epochs: Sequence[int]
    loss: Sequence[float]
    top1: Sequence[float]
    train_top1: Sequence[float] | None = None

    @classmethod
    def of(cls, title: str, records: Sequence[Mapping[str, Any]]) -> TrainingCurves:
        """Read the lines of a `metrics.jsonl`.

        Raises:
            DataError: if there is none, or one lacks a number.
        """
        if not records:
            raise DataError(title, "holds no epoch", "give the metrics.jsonl of a training")
        columns: dict[str, list[Any]] = {}
        for name in ("epoch", "loss", "top1", "train_top1"):
            columns[name] = [record.get(name) for record in records]
            bad = next((value for value in columns[name] if isinstance(value, bool) or not _is_number(value)), 0)
            if bad != 0 and name != "train_top1":
                raise DataError(title, f"has {bad!r} as {name} of an epoch", "give the metrics.jsonl of a training")
        shown = columns["train_top1"] if all(map(_is_number, columns["train_top1"])) else None
        return cls(title, columns["epoch"], columns["loss"], columns["top1"], shown)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


@plots.register("training")
def draw_training(data: TrainingCurves) -> Figure:
    """Draw the loss above the accuracy; the best epoch is marked."""
    best = max(range(len(data.top1)), key=lambda place: (data.top1[place], -place))
    subtitle = f"Best epoch: {data.epochs[best]} of {data.epochs[-1]}, validation top-1 {data.top1[best]:.2%}"
    figure = new_figure(f"Training: {data.title}", subtitle, 5.0)
    above, below = new_axes(figure, 2, 1, sharex=True)
    marker = "o" if len(data.epochs) == 1 else ""
    above.plot(data.epochs, data.loss, color=BLUE, linewidth=1.5, marker=marker)
    if data.train_top1 is not None:
        percent = [100 * value for value in data.train_top1]
        below.plot(data.epochs, percent, color=BLUE, linewidth=1.5, marker=marker, label="training, augmented")
    below.plot(
        data.epochs,
        [100 * value for value in data.top1],
        color=ORANGE,
        linewidth=1.5,
        marker=marker,
        label="validation",
    )
    below.plot([data.epochs[best]], [100 * data.top1[best]], color=ORANGE, marker="o", markersize=6)
    above.axvline(data.epochs[best], color=GREY, linewidth=0.8)
    below.axvline(data.epochs[best], color=GREY, linewidth=0.8)
    above.set_ylabel("training loss")
    below.set_ylabel("top-1 (%)")
    below.set_xlabel("epoch")
    below.legend(loc="lower right")
    above.set_ylim(bottom=0)
    for panel in (above, below):
        lighten_grid(panel, "y")
    return figure

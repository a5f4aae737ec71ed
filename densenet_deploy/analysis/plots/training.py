"""Loss and accuracy of a training over its epochs, with the epoch that was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.style import BLUE, GREY, ORANGE, lighten_grid, new_axes, new_figure
from densenet_deploy.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_NEEDED: Final = ("epoch", "loss", "top1")
_FIX: Final = "give the metrics.jsonl of a training"


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
            raise DataError(title, "holds no epoch", _FIX)
        for number, record in enumerate(records, start=1):
            missing = next((name for name in _NEEDED if not _is_number(record, name)), None)
            if missing is not None:
                raise DataError(title, f"line {number} has no number {missing!r}", _FIX)
        epochs, loss, top1 = ([record[name] for record in records] for name in _NEEDED)
        is_shown = all(_is_number(record, "train_top1") for record in records)
        return cls(title, epochs, loss, top1, [record["train_top1"] for record in records] if is_shown else None)


def _is_number(record: object, name: str) -> bool:
    value = record.get(name) if isinstance(record, Mapping) else None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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

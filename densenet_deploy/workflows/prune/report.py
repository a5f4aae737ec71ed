"""What pruning did, and how far the result is from the float original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from densenet_deploy.model import InputDescription
from densenet_deploy.parity.compare import Parity
from densenet_deploy.reports import TimedReport, line, table, wrote
from densenet_deploy.workflows.compare import ParityOfOutputs
from densenet_deploy.workflows.finetuning import Finetuning


@dataclass(frozen=True)
class LayerWidth:
    """The channels of a bottleneck, and the SQNR in dB of what its layer makes on the images that chose them."""

    before: int
    after: int
    sqnr_db: float | None

    @classmethod
    def of(cls, before: int, after: int, relative_error: float) -> LayerWidth:
        """Describe a layer by its squared error relative to the variance of its outputs; 0 has no SQNR."""
        return cls(before, after, -10 * math.log10(relative_error) if relative_error > 0 else None)


@dataclass(frozen=True)
class JudgedAccuracy:
    """Top-1, or the mean AUROC, of the original and of the result on `images` that did not choose the channels."""

    before: float
    after: float
    images: int


@dataclass(frozen=True, kw_only=True)
class PruneReport(TimedReport, ParityOfOutputs):
    """A smaller float graph, and how far its outputs are from the original's on images that did not choose it.

    Attributes:
        onnx, checkpoint: the file that was written; None of the other kind, and while the result is only in memory.
        macs_before, macs_after: multiply-accumulates of one image.
        parameters_before, parameters_after: numbers in the graph's convolutions, norms and linear layers.
        removed: share of the channels of all bottlenecks.
        widths: `uniform`, or `per-layer`.
        layers: each bottleneck, by the name of its first convolution.
        outputs: the parity of each output with that of the float original on the images held out.
        chosen_on, held_out: numbers of calibration images.
        trials: networks that were pruned and measured.
        accuracy: with `max_drop`.
        finetune: what fine-tuning did; None without it.
    """

    kind: ClassVar[str] = "prune"
    derived: ClassVar[tuple[str, ...]] = ("parity", "seconds")

    onnx: Path | None
    checkpoint: Path | None
    variant: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    removed: float
    widths: str
    layers: Mapping[str, LayerWidth]
    outputs: Mapping[str, Parity]
    chosen_on: int
    held_out: int
    trials: int
    input: InputDescription
    accuracy: JudgedAccuracy | None = None
    finetune: Finetuning | None = None

    def to_text(self) -> str:
        """Return lines for people."""
        rows = [(name, f"{layer.before} -> {layer.after}", _decibels(layer)) for name, layer in self.layers.items()]
        return "\n".join(
            [
                *wrote(self.onnx or self.checkpoint),
                line("model", self.variant),
                line("MACs", _change(self.macs_before, self.macs_after)),
                line("parameters", _change(self.parameters_before, self.parameters_after)),
                line("channels", f"{self.removed:.1%} of the bottlenecks' channels removed, {self.widths}"),
                line("images", f"{self.chosen_on} chose the channels, {self.held_out} others judge the result"),
                line("input", self.input),
                *self.parity_lines(),
                *self._accuracy_lines(),
                *([line("fine-tuned", self.finetune)] if self.finetune is not None else []),
                *self.stage_lines(),
                *(f"  {row}" for row in table(("bottleneck", "channels", "its layer"), rows)),
            ]
        )

    def _accuracy_lines(self) -> list[str]:
        found = self.accuracy
        if found is None:
            return []
        return [line("accuracy", f"{found.before:.2%} -> {found.after:.2%} on {found.images} images held out")]


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / before:.1%})"


def _decibels(layer: LayerWidth) -> str:
    return "exact" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB"

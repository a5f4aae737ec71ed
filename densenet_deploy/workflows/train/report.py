"""What a training did and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from densenet_deploy.model import InputDescription
from densenet_deploy.reports import TimedReport, line, table, wrote
from densenet_deploy.workflows.evaluation.report import BadFile


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: a line of `metrics.jsonl`.

    Attributes:
        epoch: its number, from 1.
        loss: the mean loss of the images that were trained on, without weight decay.
        train_top1: fraction of them that were right, augmented as they were; None with mixup.
        top1, top5: of the validation images, as `evaluate` measures them; top5 is None of five classes or fewer.
        calibration_error: likewise.
        lr, head_lr: the learning rates at its end.
        images: images that were trained on.
        seconds: of training and validation.
    """

    epoch: int
    loss: float
    train_top1: float | None
    top1: float
    top5: float | None
    calibration_error: float
    lr: float
    head_lr: float
    images: int
    seconds: float


@dataclass(frozen=True)
class Rung:
    """A part of a search: how many candidates were trained, and for how many epochs each."""

    candidates: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A candidate of a search, after its longest training.

    Attributes:
        candidate: the numbers that make it, such as `growth-rate=12`.
        variant, parameters: the network.
        macs: multiply-accumulates for one image.
        epochs: of that training; figures after different ones are not compared.
        top1: of its best epoch, on the validation images.
        best_epoch: from 1.
        checkpoint: its weights; None while only in memory, or given up.
        latency_ms, latency_interval_ms: of one image in ONNX Runtime, and the 95 % interval; None before the last rung.
        on_front: whether no other of the last rung is as fast and as accurate, and better in one.
    """

    candidate: str
    variant: str
    parameters: int
    macs: int
    epochs: int
    top1: float
    best_epoch: int
    checkpoint: Path | None
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None
    on_front: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What a search tried.

    Attributes:
        chosen: the candidate whose network was kept: the most accurate of the last rung.
        rungs: in their order.
        epochs: of all trainings together.
        trials: every candidate, those of the last rung first.
        figure: accuracy and latency of the last rung; None where it was not drawn.
    """

    chosen: str
    rungs: tuple[Rung, ...]
    epochs: int
    trials: tuple[SearchTrial, ...]
    figure: Path | None

    def lines(self) -> list[str]:
        """Return lines for people."""
        rungs = ", then ".join(f"{rung.candidates} for {rung.epochs}" for rung in self.rungs)
        header = ("candidate", "epochs", "top-1", "MACs", "parameters", "latency", "Pareto front")
        return [
            line("search", f"{rungs} epochs; kept {self.chosen}"),
            *wrote(self.figure),
            *table(header, map(_row, self.trials)),
        ]


def _row(trial: SearchTrial) -> list[str]:
    latency = "" if trial.latency_ms is None else f"{trial.latency_ms:.2f} ms"
    sizes = [f"{trial.macs / 1e6:.1f} M", f"{trial.parameters:,}"]
    return [trial.candidate, str(trial.epochs), f"{trial.top1:.2%}", *sizes, latency, "yes" if trial.on_front else ""]


@dataclass(frozen=True, kw_only=True)
class TrainReport(TimedReport):
    """A trained network: where it is, and how good it is on the validation images.

    Attributes:
        checkpoint: the weights of the best epoch, with labels and preprocessing; None while only in memory.
        last: the weights of the last epoch.
        curves: the figure of loss and accuracy; None where it was not drawn.
        variant, parameters, classes: the network.
        top1, top5, calibration_error: of the best epoch, on the validation images.
        epochs: how many were trained, in all runs together.
        best_epoch: the first of those with the best top-1, from 1.
        loss: of the training images in the last epoch.
        training_images, validation_images: how many there are.
        bad: images that could not be read, and were left out.
        processes, shards: how many trained together, and the parts of a batch that are normalized by themselves.
        resumed_from: the epoch after which this run went on; None if it began.
        weights_sha256: of the last epoch's weights, by which runs are compared.
        history: every epoch.
        search: what `--search` tried before this network was chosen; None without.
    """

    kind: ClassVar[str] = "train"

    checkpoint: Path | None
    last: Path | None
    curves: Path | None
    variant: str
    parameters: int
    classes: int
    top1: float
    top5: float | None
    calibration_error: float
    epochs: int
    best_epoch: int
    loss: float
    training_images: int
    validation_images: int
    bad: tuple[BadFile, ...]
    processes: int
    shards: int
    resumed_from: int | None
    weights_sha256: str
    input: InputDescription
    history: tuple[EpochRecord, ...]
    search: SearchReport | None = None

    def to_text(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2%}"
        resumed = "" if self.resumed_from is None else f", resumed after epoch {self.resumed_from}"
        skipped = f", {len(self.bad)} unreadable left out" if self.bad else ""
        return "\n".join(
            [
                *wrote(self.checkpoint),
                line("network", f"densenet {self.variant}, {self.parameters:,} parameters, {self.classes} classes"),
                line("images", f"{self.training_images} to train on, {self.validation_images} to validate{skipped}"),
                line("input", self.input),
                line(
                    "best epoch",
                    f"{self.best_epoch} of {self.epochs}{resumed}: top-1 {self.top1:.2%}{top5}, chosen by it",
                ),
                line("last epoch", f"loss {self.loss:.4f}, top-1 {self.history[-1].top1:.2%}"),
                *(self.search.lines() if self.search else ()),
                *self.stage_lines(),
            ]
        )

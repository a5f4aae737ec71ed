"""The loop: one epoch after another, in one process or several, to the same bits.

A batch is divided into shards. Each shard passes forward and backward by itself, and is normalized by its own
statistics; gradients and statistics are then added in the order of the shards, whichever process computed them:

    g = (((g₀ + g₁) + g₂) + …) / S        r ← (1 - m)·r + m·(s₀ + s₁ + …) / S

So for a given number of shards S the result does not depend on the number of processes. It does depend on S, as
statistics of fewer images differ. Nothing random is carried from step to step: every draw is seeded by (seed, epoch,
step, shard), so that a resumed run needs no random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densenet_deploy.errors import GateError
from densenet_deploy.models.build import DenseNet
from densenet_deploy.training.batches import DROPOUT, MIX, Batches, Shard
from densenet_deploy.training.loss import Objective, mixed
from densenet_deploy.training.network import (
    MovingAverage,
    first_non_finite,
    frozen_parts,
    norms_in_training,
    optimizer_of,
    start_training,
    weights_in,
)
from densenet_deploy.training.options import TrainOptions
from densenet_deploy.training.processes import Processes

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIX = "train with a lower --lr, without --amp fp16, or with --warmup-epochs 1"


@dataclass(frozen=True)
class EpochResult:
    """What an epoch of training measured.

    Attributes:
        loss: mean over the images that were trained on.
        top1: fraction of the labelled ones that were right; None with mixup, where images show two classes.
        lr, head_lr: the learning rates of its last step.
        images: that were trained on.
    """

    loss: float
    top1: float | None
    lr: float
    head_lr: float
    images: int


class Trainer:
    """Trains `network` in place.

    Args:
        network: on the device of `processes`.
        batches: what to train on.
        options: how.
        processes: this one, and how many there are; their number divides that of the shards.
        objective: the loss.
        is_pretrained: whether the features were trained before, which decides the default learning rate.

    Raises:
        UsageError: if nothing would be trained, or the part to freeze is unknown.
    """

    def __init__(
        self,
        network: DenseNet,
        batches: Batches,
        options: TrainOptions,
        processes: Processes,
        objective: Objective,
        *,
        is_pretrained: bool,
    ) -> None:
        self.network, self.average = network, None if options.ema is None else MovingAverage(network, options.ema)
        self._batches, self._options, self._processes, self._objective = batches, options, processes, objective
        self._frozen = frozen_parts(network, options.freeze)
        self._optimizer = optimizer_of(network, options, is_pretrained=is_pretrained)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=options.amp == "fp16")
        self._trained = [tensor for tensor in network.parameters() if tensor.requires_grad]

    @property
    def result(self) -> DenseNet:
        """The network to evaluate and to keep: the moving average if there is one."""
        return self.network if self.average is None else self.average.network

    def epoch(self, epoch: int, step_done: Callable[[int, int], None]) -> EpochResult:
        """Train for one epoch, counted from 0; `step_done(done, total)` is called after each step, over all epochs.

        Raises:
            GateError: if the loss or a weight becomes NaN or infinite.
            InputError: if an image cannot be read.
        """
        start_training(self.network, self._frozen)
        steps, processes = self._batches.steps, self._processes
        sums = np.zeros(3)
        with torch.random.fork_rng(devices=[processes.device] if processes.device.type == "cuda" else []):
            for step, shards in enumerate(self._batches.epoch(epoch, processes.rank, processes.count)):
                done = epoch * steps + step
                factor = self._options.rate_at(done, steps)
                for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                    group["lr"] = rate * factor
                sums += self._step(shards, epoch, step)
                step_done(done + 1, steps * self._options.epochs)
        bad = first_non_finite(self.network)
        if bad is not None:
            raise GateError(bad, f"holds NaN or infinite values after epoch {epoch + 1}", _FIX)
        loss, right, labelled = map(float, sums)
        counts_right = self._options.mixup == 0 and labelled > 0
        lr, head_lr = (float(group["lr"]) for group in self._optimizer.param_groups)
        images = steps * self._batches.batch_size
        return EpochResult(loss / steps, right / labelled if counts_right else None, lr, head_lr, images)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on to the same bits: tensors, numbers and containers."""
        average = {} if self.average is None else weights_in(self.average.network)
        optimizer = self._optimizer.state_dict()
        return {
            "network": weights_in(self.network),
            "average": average,
            "optimizer": optimizer,
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.network.load_state_dict(state["network"], strict=False)  # batch counters are not kept
        if self.average is not None:
            self.average.network.load_state_dict(state["average"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _step(self, shards: Sequence[Shard], epoch: int, step: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Take one step; return the mean loss, and how many of how many labelled images were right."""
        running = [buffer for norm in norms_in_training(self.network) for buffer in _statistics(norm)]
        before = [buffer.clone() for buffer in running]
        total = self._total(shards, running, epoch, step)
        sums = total[-3:].double().cpu().numpy()
        count = self._batches.shards
        if not math.isfinite(sums[0]):
            where = f"in step {step + 1} of epoch {epoch + 1}"
            raise GateError("loss", f"became {sums[0]} {where}", _FIX)
        total = total[:-3] / count
        parts = iter(torch.split(total, [tensor.numel() for tensor in (*self._trained, *running)]))
        for tensor in self._trained:
            tensor.grad = next(parts).view_as(tensor)
        with torch.no_grad():
            for norm in norms_in_training(self.network):
                for buffer in _statistics(norm):
                    buffer.copy_(next(parts).view_as(buffer).add_(before.pop(0), alpha=1 - _momentum(norm)))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.average is not None:
            self.average.update(self.network)
        sums[0] /= count
        return np.asarray(sums)

    def _total(self, shards: Sequence[Shard], running: Sequence[Tensor], epoch: int, step: int) -> Tensor:
        """Return the sums over all shards in their order: gradients, statistics, loss, right, labelled, in one row."""
        total: Tensor | None = None
        for shard in shards:  # each process has as many, and those of one round have neighbouring numbers
            for part in self._processes.gathered_tensors(self._row(shard, running, epoch, step)):
                total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _row(self, shard: Shard, running: Sequence[Tensor], epoch: int, step: int) -> Tensor:
        """Run one shard forward and backward from statistics of zero, so that they become momentum times its own."""
        options, device = self._options, self._processes.device
        torch.manual_seed(_seed(options.seed, DROPOUT, epoch, step, shard.number))
        generator = np.random.default_rng([options.seed, MIX, epoch, step, shard.number])
        batch = mixed(shard.inputs.to(device), shard.classes.to(device), options.mixup, generator)
        with torch.no_grad():
            for buffer in running:
                buffer.zero_()
        for tensor in self._trained:
            tensor.grad = None
        kind = _TYPES.get(options.amp or "")
        with torch.autocast(device.type, kind, enabled=kind is not None):
            outputs = self.network(batch.inputs).float()
        loss = self._objective(outputs, batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        right = (outputs.detach().argmax(1) == batch.classes).sum()
        counts = torch.stack([loss.detach(), right.float(), (batch.classes >= 0).sum().float()])
        gradients = (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in self._trained)
        return torch.cat([*(tensor.reshape(-1) for tensor in (*gradients, *running)), counts])


def _statistics(norm: Any) -> Iterator[Tensor]:
    yield from (norm.running_mean, norm.running_var)


def _momentum(norm: Any) -> float:
    return float(norm.momentum)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))

"""What the training scripts of this folder share: the loop, the accuracy, and the files that they write."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from densenet_deploy.artifacts import write_file
from densenet_deploy.manifest import Manifest
from densenet_deploy.models.build import DenseNet
from densenet_deploy.sources.file import save_weights

Batch = tuple[Tensor, Tensor]
"""Inputs (N, 3, H, W) float32, and the class of each: (N,) int64."""

_EVALUATION_BATCH: Final = 500


@dataclass(frozen=True)
class TrainingPlan:
    """What to train and how long; the learning rate rises once and falls once."""

    variant: str = "121"
    epochs: int = 12
    batch_size: int = 32
    peak_learning_rate: float = 0.1
    weight_decay: float = 5e-4

    def steps(self, images: int) -> int:
        """Return the steps of all epochs, each over so many images."""
        return self.epochs * math.ceil(images / self.batch_size)


def fit(
    model: DenseNet,
    optimizer: Optimizer,
    batches_of: Callable[[int], Iterable[Batch]],
    images: int,
    plan: TrainingPlan,
    bfloat16_epochs: int = 0,
) -> DenseNet:
    """Train `model` in place and return it in eval mode. `batches_of(epoch)` gives the `images` of an epoch, from 0.

    The first `bfloat16_epochs` compute in bfloat16 where autocast finds that safe; weights are float32 throughout, and
    float32 epochs at the end leave norms with the statistics of float32 activations.
    """
    model.train()
    schedule = OneCycleLR(optimizer, plan.peak_learning_rate, total_steps=plan.steps(images))
    for epoch in range(plan.epochs):
        started, total = time.perf_counter(), 0.0
        for inputs, classes in batches_of(epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=epoch < bfloat16_epochs):
                loss = functional.cross_entropy(model(inputs), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(classes)
        print(f"epoch {epoch + 1}: loss {total / images:.4f}, {time.perf_counter() - started:.1f} s", flush=True)
    return model.eval()


def accuracy_of(model: DenseNet, inputs: Tensor, classes: Tensor) -> float:
    """Return the share of `inputs` (N, 3, H, W) that the model classifies as `classes` (N,)."""
    with torch.inference_mode():
        read = torch.cat([model(part).argmax(1) for part in inputs.split(_EVALUATION_BATCH)])
    return int((read == classes).sum()) / len(classes)


def write_network(folder: Path, name: str, model: DenseNet, manifest: Manifest, facts: Mapping[str, object]) -> None:
    """Write to `folder` the weights as `name`, `labels.txt`, and `facts` with the environment as `training.json`."""
    report = {
        **facts,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    save_weights(folder / name, model, manifest)
    write_file(folder / "labels.txt", "".join(f"{label}\n" for label in manifest.labels).encode())
    write_file(folder / "training.json", (json.dumps(report, indent=2) + "\n").encode())

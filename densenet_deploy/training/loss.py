"""What a step makes small: cross entropy, and with a teacher the distance of the softened outputs.

Distillation is that of Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531): with the outputs z of the
student and t of the teacher, α·T²·KL(softmax(t/T) ‖ softmax(z/T)) + (1 - α)·cross entropy. Mixup is that of Zhang and
others 2018 (https://arxiv.org/abs/1710.09412): an input is λ·x₁ + (1 - λ)·x₂ with λ from a Beta distribution, and so is
the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from densenet_deploy.training.data import UNLABELLED


@dataclass(frozen=True)
class Mixed:
    """Inputs (N, C, H, W) of which each is mixed with another: `share` of its own, with `classes` and `others` (N,)."""

    inputs: Tensor
    classes: Tensor
    others: Tensor
    share: float = 1.0


def mixed(inputs: Tensor, classes: Tensor, mixup: float, generator: np.random.Generator) -> Mixed:
    """Mix each input with another one of the batch; `mixup` is the parameter of the Beta distribution, 0 mixes none."""
    if mixup == 0:
        return Mixed(inputs, classes, classes)
    share = float(generator.beta(mixup, mixup))
    order = torch.from_numpy(generator.permutation(len(inputs))).to(inputs.device)
    return Mixed(share * inputs + (1 - share) * inputs[order], classes, classes[order], share)


@dataclass(frozen=True)
class Objective:
    """The loss of a batch.

    Attributes:
        label_smoothing: probability that is spread over all classes.
        teacher: in eval mode; None: cross entropy alone.
        temperature, alpha: of distillation.
    """

    label_smoothing: float = 0.0
    teacher: nn.Module | None = None
    temperature: float = 4.0
    alpha: float = 0.7

    def __call__(self, outputs: Tensor, batch: Mixed) -> Tensor:
        """Return the mean loss of the images of `batch`, for the network's `outputs` (N, classes), float32.

        An image without a class adds nothing to the cross entropy, which is still divided by the number of all.
        """
        loss = batch.share * self._cross_entropy(outputs, batch.classes)
        if batch.share < 1:
            loss = loss + (1 - batch.share) * self._cross_entropy(outputs, batch.others)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = functional.log_softmax(self.teacher(batch.inputs).float() / self.temperature, 1)
        found = functional.log_softmax(outputs / self.temperature, 1)
        distance = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return self.alpha * self.temperature**2 * distance + (1 - self.alpha) * loss

    def _cross_entropy(self, outputs: Tensor, classes: Tensor) -> Tensor:
        total = functional.cross_entropy(
            outputs, classes, ignore_index=UNLABELLED, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / len(outputs)

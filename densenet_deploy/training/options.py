"""How to train: the optimizer and its schedule, augmentation, regularization, distillation, processes.

The defaults are those of the DenseNet paper (https://arxiv.org/abs/1608.06993): SGD with a Nesterov momentum of 0.9, a
weight decay of 1e-4, and a learning rate of 0.1 that is divided by 10 at 50 % and at 75 % of the epochs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from densenet_deploy.artifacts import StrPath
from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range

if TYPE_CHECKING:
    from densenet_deploy.model import Model

OPTIMIZERS: Final = ("sgd", "adamw")
SCHEDULES: Final = ("step", "cosine", "constant")
AUGMENTATIONS: Final = ("auto", "none", "crop", "resized-crop")
AMP: Final = ("bf16", "fp16")
CIFAR_NAMES: Final = ("cifar10", "cifar100")
"""Data sets that are known by name."""

FREEZE_FEATURES: Final = "features"
FREEZE_UNTIL: Final = "until="

_LEARNING_RATES: Final = {("sgd", False): 0.1, ("sgd", True): 0.01, ("adamw", False): 1e-3, ("adamw", True): 1e-4}
_STEPS: Final = (0.5, 0.75)
_LARGEST_CROPPED: Final = 64
"""Pixels of the largest images that are shifted as a whole; of larger ones, parts are resized."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. `None` leaves a value to the training.

    >>> TrainOptions(epochs=20, freeze="until=denseblock3", lr=1e-4, head_lr=1e-2).optimizer
    'sgd'

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, in all processes together. Images beyond the last full batch of an epoch wait for
            the next one, which shuffles anew.
        optimizer: `sgd` (Nesterov momentum 0.9) or `adamw`.
        lr: learning rate; None: 0.1 for sgd and 0.001 for adamw, a tenth of it where weights are given.
        head_lr: of the classifier; None: `lr`.
        weight_decay: of all parameters.
        schedule: `step` (divided by 10 at 50 % and 75 % of the epochs), `cosine` or `constant`.
        warmup_epochs: over which the learning rate rises from 0; may be a fraction.
        freeze: `features`, or `until=NAME`: all up to and including `features.NAME`, such as `until=denseblock3`.
            Frozen norms keep their statistics.
        augment: `crop` (shifted by up to an eighth of the image, black outside), `resized-crop` (a random part of 8 to
            100 % of the image), `none`, or `auto`: `crop` for images of at most 64 pixels, `resized-crop` above.
        flip: mirror half of the images.
        mixup: of the Beta distribution that two images are mixed by; 0 mixes none.
        label_smoothing: probability that is spread over all classes, 0 to 1.
        amp: compute in `bf16` or `fp16` where autocast finds that safe; weights stay float32.
        memory_efficient: recompute dense layers in the backward pass: less memory, more time, the same bits.
        ema: decay of a moving average of the weights, which is then evaluated and written; None: no average.
        teacher: the model to learn from: whatever `load` takes.
        temperature, alpha: of distillation: alpha·T²·KL(softened outputs) + (1 - alpha)·cross entropy.
        shards: parts of a batch, each normalized by itself; None: as many as there are processes, which must divide it.
        seed: of weights, order, augmentation and dropout.
        device: `cpu`, `cuda`, `cuda:1`, or None: a GPU where there is one.
        max_bad: unreadable images to leave out.
        check: decode every image before the first step.

    Raises:
        UsageError: if a value is out of range or unknown.
    """

    epochs: int = 90
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 1e-4
    schedule: str = "step"
    warmup_epochs: float = 0.0
    freeze: str | None = None
    augment: str = "auto"
    flip: bool = True
    mixup: float = 0.0
    label_smoothing: float = 0.0
    amp: str | None = None
    memory_efficient: bool = False
    ema: float | None = None
    teacher: StrPath | Model | None = None
    temperature: float = 4.0
    alpha: float = 0.7
    shards: int | None = None
    seed: int = 0
    device: str | None = None
    max_bad: int = 0
    check: bool = True

    def __post_init__(self) -> None:
        require_range("epochs", self.epochs, 1, 100_000)
        require_range("batch-size", self.batch_size, 2, 65_536)
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        for name, rate in (("lr", self.lr), ("head-lr", self.head_lr)):
            if rate is not None:
                require_range(name, rate, 0.0, 1e3)
        require_range("weight-decay", self.weight_decay, 0.0, 1.0)
        require_choice("schedule", self.schedule, SCHEDULES)
        require_range("warmup-epochs", self.warmup_epochs, 0.0, float(self.epochs))
        require_choice("augment", self.augment, AUGMENTATIONS)
        require_range("mixup", self.mixup, 0.0, 10.0)
        require_range("label-smoothing", self.label_smoothing, 0.0, 0.99)
        if self.amp is not None:
            require_choice("amp", self.amp, AMP)
        if self.ema is not None:
            require_range("ema", self.ema, 0.0, 0.999999)
        require_range("temperature", self.temperature, 0.01, 100.0)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_range("seed", self.seed, 0, 2**32 - 1)
        require_range("max-bad", self.max_bad, 0, 10**9)
        self._check_freeze()
        if self.shards is not None:
            check_shards(self.batch_size, self.shards)

    def _check_freeze(self) -> None:
        if self.freeze is None or self.freeze == FREEZE_FEATURES:
            return
        if not self.freeze.startswith(FREEZE_UNTIL) or self.freeze == FREEZE_UNTIL:
            fix = f"give {FREEZE_FEATURES}, or {FREEZE_UNTIL}denseblock3"
            raise UsageError(f"freeze={self.freeze}", "does not say what to freeze", fix)

    def learning_rates(self, *, is_pretrained: bool) -> tuple[float, float]:
        """Return the learning rates of the features and of the classifier, before the schedule."""
        rate = _LEARNING_RATES[self.optimizer, is_pretrained] if self.lr is None else self.lr
        return rate, rate if self.head_lr is None else self.head_lr

    def augmentation(self, smallest_side: int) -> str:
        """Return `none`, `crop` or `resized-crop` for images of which the smaller side has so many pixels."""
        if self.augment != "auto":
            return self.augment
        return "crop" if smallest_side <= _LARGEST_CROPPED else "resized-crop"

    def rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor of the learning rates at `step`, counted from 0 over all epochs.

        >>> [TrainOptions(epochs=4).rate_at(step, 1) for step in range(4)]
        [1.0, 1.0, 0.1, 0.01]
        """
        warmup = self.warmup_epochs * steps_per_epoch
        done = step / (self.epochs * steps_per_epoch)
        factor = 1.0
        if self.schedule == "step":
            factor = (1.0, 0.1, 0.01)[sum(done >= start for start in _STEPS)]
        if self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * done))
        return factor * min(1.0, (step + 1) / warmup) if warmup else factor

    def numbers(self) -> dict[str, Any]:
        """Return all that decides the bits of the weights, by name, but not what names a file or a place."""
        left_out = ("teacher", "device", "max_bad", "check", "memory_efficient")
        fields = (field.name for field in dataclasses.fields(self) if field.name not in left_out)
        return {name: getattr(self, name) for name in fields}


def check_shards(batch_size: int, shards: int) -> int:
    """Return `shards` if a batch of `batch_size` can be divided by it, with two images or more in each.

    Raises:
        UsageError: if it cannot.
    """
    require_range("shards", shards, 1, 65_536)
    if batch_size % shards or batch_size // shards < 2:
        why = f"is not a multiple of {shards} shards with at least two images in each"
        raise UsageError(f"batch-size={batch_size}", why, f"give a multiple of {2 * shards}")
    return shards

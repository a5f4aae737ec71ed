"""fastai's learners on a torchvision DenseNet: `Sequential(Sequential(features), head)`.

The body ends with the last norm: the ReLU behind it is code in torchvision's `forward`, which fastai leaves behind. The
head pools maxima and means side by side, then repeats BatchNorm, Dropout, Linear, with a ReLU after all but the last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.heads import HeadConventions
from densenet_deploy.sources.source import CheckpointFormat, formats

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_NORM: Final = "1.2.running_mean"  # behind the pool, 1.0, and Flatten, 1.1


@formats.register("fastai")
class FastaiFormat(CheckpointFormat):
    """Names of the head that begin with the norm `1.2`."""

    head: ClassVar[HeadConventions] = HeadConventions(pooling="max-avg")

    def recognises(self, names: Collection[str]) -> bool:
        return _FIRST_NORM in names

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:  # noqa: ARG002 - the head is read by its widths
        return {}

    def notes(self, tensors: Mapping[str, Tensor | Array]) -> tuple[str, ...]:  # noqa: ARG002 - it holds for all
        return ("fastai crops the middle square before it resizes, not after it as here: outputs differ (16.7 dB)",)

"""Published accuracies, not measured here: single crop, on the 50 000 validation images of ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Published:
    """Top-1 and top-5 as fractions (None where the source does not give it), and the source."""

    top1: float
    top5: float | None
    source: str


_TORCHVISION: Final = "torchvision, IMAGENET1K_V1 weights"

PUBLISHED: Final = {
    "densenet121": Published(0.74434, 0.91972, _TORCHVISION),
    "densenet161": Published(0.77138, 0.9356, _TORCHVISION),
    "densenet169": Published(0.756, 0.92806, _TORCHVISION),
    "densenet201": Published(0.76896, 0.9337, _TORCHVISION),
    "densenet264": Published(0.7785, None, "the DenseNet paper"),
    "resnet50": Published(0.7613, 0.92862, _TORCHVISION),
    "resnet101": Published(0.77374, 0.93546, _TORCHVISION),
}
"""By the name of the architecture, at 224 pixels and 1000 classes."""

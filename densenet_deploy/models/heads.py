"""What follows the dense blocks: pooled features of the last one, or of every block; then a classifier or nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec


class PooledFeatures(nn.Sequential):
    """ReLU, global average pool, flatten: (N, C, H, W) → (N, C)."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1)),
        )


class MultiScaleFeatures(nn.Module):
    """Each block's output by a 1x1 convolution to `SCALE_CHANNELS`, pooled; all concatenated: → (N, 128 · blocks)."""

    def __init__(self, block_channels: Sequence[int]) -> None:
        super().__init__()
        for number, channels in enumerate(block_channels, start=1):
            scale = OrderedDict(
                conv=nn.Conv2d(channels, SCALE_CHANNELS, kernel_size=1),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(1),
            )
            self.add_module(f"reduce{number}", nn.Sequential(scale))

    def forward(self, block_outputs: Sequence[Tensor]) -> Tensor:
        """Map the blocks' outputs, each (N, C_i, H_i, W_i), to one row an image."""
        scales = zip(self.children(), block_outputs, strict=True)
        return torch.cat([reduce(output) for reduce, output in scales], dim=1)


def build_head(spec: DenseNetSpec) -> nn.Module:
    """Return what stands between the dense blocks and the classifier."""
    return MultiScaleFeatures(spec.channels_out) if spec.head == "multiscale" else PooledFeatures()


def build_classifier(spec: DenseNetSpec) -> nn.Module:
    """Return the linear classifier, or the identity for a network whose output is its features."""
    if spec.head == "features":
        return nn.Identity()
    width = SCALE_CHANNELS * len(spec.blocks) if spec.head == "multiscale" else spec.feature_channels
    return nn.Linear(width, spec.num_classes)

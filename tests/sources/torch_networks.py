"""Small torchvision DenseNets with other heads and channels, all statistics different, and how close two are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import DenseNet

CHANNELS = 32
"""Of the features of `network`."""


def network(head: nn.Module | None = None, channels: int = 3, classes: int = 5, seed: int = 0) -> DenseNet:
    """A network of four blocks, as torchvision builds it, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DenseNet(8, (2, 2, 2, 2), 16, num_classes=classes)
        if channels != 3:
            net.features.conv0 = nn.Conv2d(channels, 16, 7, 2, 3, bias=False)
        if head is not None:
            net.classifier = head
    return scrambled(net)


def scrambled(net: nn.Module, seed: int = 1, size: int = 64) -> nn.Module:
    """Give norms other scales and shifts and the statistics of some images, so that outputs follow the image."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.momentum = 1.0
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.uniform_(-1, 1, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    channels = next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net.train()(torch.randn(8, channels, size, size))
    return net.eval()


def features(net: DenseNet, images: Tensor, *, relu: bool = True) -> Tensor:
    """The pooled features."""
    maps = net.features(images)
    return functional.adaptive_avg_pool2d(functional.relu(maps) if relu else maps, 1).flatten(1)


def images(channels: int = 3, count: int = 4, size: int = 64) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(2))


def decibels(expected: Tensor, found: Tensor) -> float:
    """The SQNR of `found`."""
    assert expected.shape == found.shape
    noise = float((expected - found).pow(2).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(expected.pow(2).sum()) / noise)


def agree(one: nn.Module, other: nn.Module, channels: int = 3, size: int = 64) -> bool:
    """Whether two modules agree to 90 dB, float32 rounding of the same operations in another order."""
    batch = images(channels, size=size)
    with torch.inference_mode():
        return decibels(one(batch), other(batch)) >= 90

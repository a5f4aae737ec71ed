"""A DenseNet as a torch module, built from a spec, with torchvision's parameter names.

Every operation but the concatenations is a named submodule, so that the nodes of an export are named after it. A layer
reads all earlier maps of its block: BN → ReLU → conv1x1 → BN → ReLU → conv3x3; without bottleneck, BN → ReLU → conv3x3.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from densenet_deploy.variants.hidden import HiddenLayer, named_hidden_layers
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec

_LAST_NORM: Final = "norm5"
"""torchvision's name for the norm after the last block, kept for any number of blocks."""


class PlainLayer(nn.Module):
    """A layer without bottleneck: the block's maps so far, in parts → (N, growth_rate, H, W)."""

    def __init__(self, channels: int, spec: DenseNetSpec, *, memory_efficient: bool) -> None:
        super().__init__()
        self.memory_efficient = memory_efficient
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, spec.growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop = nn.Dropout(spec.drop_rate) if spec.drop_rate > 0 else nn.Identity()

    def forward(self, *earlier: Tensor) -> Tensor:
        """Map all earlier maps of the block to this layer's new ones."""
        recomputes = self.memory_efficient and self.training
        new: Tensor = self.drop(self._recomputed(*earlier) if recomputes else self._made(*earlier))
        return new

    def _made(self, *earlier: Tensor) -> Tensor:
        new: Tensor = self.conv1(self.relu1(self.norm1(torch.cat(earlier, 1))))
        return new

    def _recomputed(self, *earlier: Tensor) -> Tensor:
        """Make the new maps, keeping nothing but `earlier` for the backward pass.

        As https://arxiv.org/abs/1707.06990, and the bottleneck is made again too. PyTorch stops the second pass where
        it has what the gradients need, so the last convolution runs once.
        """

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return contextlib.nullcontext(), _untracked(self)

        new: Tensor = checkpoint(self._made, *earlier, use_reentrant=False, context_fn=contexts)
        return new


class BottleneckLayer(PlainLayer):
    """A layer that narrows to `narrow` channels before its 3x3 convolution."""

    def __init__(self, channels: int, spec: DenseNetSpec, narrow: int, *, memory_efficient: bool) -> None:
        super().__init__(channels, spec, memory_efficient=memory_efficient)
        self.conv1 = nn.Conv2d(channels, narrow, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(narrow)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(narrow, spec.growth_rate, kernel_size=3, padding=1, bias=False)

    def _made(self, *earlier: Tensor) -> Tensor:
        new: Tensor = self.conv2(self.relu2(self.norm2(super()._made(*earlier))))
        return new


class DenseBlock(nn.Sequential):
    """Layers that each append to what all earlier ones made: (N, channels, H, W) → (N, channels + layers·k, H, W)."""

    def __init__(
        self, channels: int, bottlenecks: Sequence[int], spec: DenseNetSpec, *, memory_efficient: bool
    ) -> None:
        super().__init__()
        for index, narrow in enumerate(bottlenecks):
            entering = channels + index * spec.growth_rate
            layer = (
                BottleneckLayer(entering, spec, narrow, memory_efficient=memory_efficient)
                if narrow
                else PlainLayer(entering, spec, memory_efficient=memory_efficient)
            )
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, entering: Tensor) -> Tensor:
        """Run the layers and concatenate everything they made behind what entered."""
        maps = [entering]
        for layer in self:
            maps.append(layer(*maps))
        return torch.cat(maps, 1)


class Transition(nn.Sequential):
    """Between two blocks: fewer channels, half the height and width."""

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, kept, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2)


class BlurPool(nn.Module):
    """Every other pixel of a map smoothed by the binomial 3x3 filter, its border mirrored: (N, C, H, W) → half of it.

    Anti-aliasing as in https://arxiv.org/abs/1904.11486. The filter is not a weight, and not in the state dict.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.filter: Tensor
        self.register_buffer("filter", self.made_filter(), persistent=False)

    def made_filter(self) -> Tensor:
        """Return the filter (C, 1, 3, 3) on PyTorch's current device, which may be the meta device."""
        row = torch.tensor([0.25, 0.5, 0.25])
        return torch.outer(row, row).repeat(self.channels, 1, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Smooth and halve."""
        padded = functional.pad(maps, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.filter, stride=2, groups=self.channels)


class Features(nn.Sequential):
    """Stem, blocks, transitions and the last norm: (N, C, H, W) → (N, feature_channels, h, w)."""

    def __init__(self, spec: DenseNetSpec, *, memory_efficient: bool) -> None:
        super().__init__()
        self._add_stem(spec)
        kept = spec.channels_in[1:]
        for index, bottlenecks in enumerate(spec.bottleneck_widths):
            block = DenseBlock(spec.channels_in[index], bottlenecks, spec, memory_efficient=memory_efficient)
            self.add_module(f"denseblock{index + 1}", block)
            if index < len(kept):
                self.add_module(f"transition{index + 1}", Transition(spec.channels_out[index], kept[index]))
        self._add_end(spec)

    def _add_stem(self, spec: DenseNetSpec) -> None:
        stem, channels = spec.stem_layers, spec.in_channels
        for index, width in enumerate(spec.stem_widths):
            stride = stem.stride if index == 0 else 1
            padding = stem.kernel // 2
            conv = nn.Conv2d(channels, width, stem.kernel, stride=stride, padding=padding, bias=False)
            self.add_module(f"conv{index}", conv)
            if stem.norm:
                self.add_module(f"norm{index}", nn.BatchNorm2d(width))
                self.add_module(f"relu{index}", nn.ReLU(inplace=True))
            channels = width
        if stem.pool == "max":
            self.add_module("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        if stem.pool == "blur":
            maximum = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
            self.add_module("pool0", nn.Sequential(OrderedDict(max=maximum, blur=BlurPool(channels))))

    def _add_end(self, spec: DenseNetSpec) -> None:
        self.add_module(_LAST_NORM, nn.BatchNorm2d(spec.feature_channels))


class BlockOutputs(Features):
    """The same without the last norm, returning what leaves each block: (N, C, H, W) → tensors (N, C_i, h_i, w_i)."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Run the stages in order and keep the blocks' outputs."""
        outputs, maps = [], images
        for stage in self:
            maps = stage(maps)
            if isinstance(stage, DenseBlock):
                outputs.append(maps)
        return outputs

    def _add_end(self, spec: DenseNetSpec) -> None:
        """Add nothing: the transitions and the head read the blocks as they are."""


class PooledFeatures(nn.Sequential):
    """The last maps as a row, by the spec's pooling and hidden layers: (N, C, H, W) → (N, `spec.row_width`)."""

    def __init__(self, spec: DenseNetSpec) -> None:
        super().__init__()
        if spec.pooling == "relu-avg":
            self.relu = nn.ReLU()
        self.pool = MaximaAndMeans() if spec.pooling == "max-avg" else nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        for name, layer, width in named_hidden_layers(spec.hidden, spec.pooled_width):
            self.add_module(name, _hidden_module(layer, width))


class MaximaAndMeans(nn.Module):
    """The maximum of each channel, and behind them the mean of each: (N, C, H, W) → (N, 2·C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.max = nn.AdaptiveMaxPool2d(1)
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool both ways."""
        return torch.cat([self.max(maps), self.mean(maps)], 1)


def _hidden_module(layer: HiddenLayer, width: int) -> nn.Module:
    if layer.kind == "linear":
        return nn.Linear(width, layer.width, bias=layer.bias)
    return nn.ReLU() if layer.kind == "relu" else nn.BatchNorm1d(width)


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
        """Map the blocks' outputs, each (N, C_i, H_i, W_i), to one row per image."""
        scales = zip(self.children(), block_outputs, strict=True)
        return torch.cat([reduce(output) for reduce, output in scales], dim=1)


class DenseNet(nn.Module):
    """A DenseNet with one of three heads: float32 images (N, C, H, W) → (N, `spec.output_width`).

    >>> model = build_model(DenseNetSpec(growth_rate=4, blocks=(2, 2), stem="cifar", num_classes=10))
    >>> tuple(model(torch.zeros(1, 3, 8, 8)).shape)
    (1, 10)

    `memory_efficient` trades time for memory in training; gradients and batch statistics are the same.

    Attributes:
        output_name, output_width: what a runner calls the output, and how long its rows are.
    """

    def __init__(self, spec: DenseNetSpec, *, memory_efficient: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.output_name, self.output_width = spec.output_name, spec.output_width
        features_type = BlockOutputs if spec.head == "multiscale" else Features
        self.features = features_type(spec, memory_efficient=memory_efficient)
        multiscale = spec.head == "multiscale"
        self.head = MultiScaleFeatures(spec.channels_out) if multiscale else PooledFeatures(spec)
        self.classifier = (
            nn.Identity() if spec.head == "features" else nn.Linear(spec.row_width, spec.num_classes, bias=spec.bias)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, or features for the features head."""
        outputs: Tensor = self.classifier(self.head(self.features(images)))
        return outputs


def build_model(spec: DenseNetSpec, *, seed: int = 0, memory_efficient: bool = False) -> DenseNet:
    """Return an untrained DenseNet in eval mode; the same `seed` gives the same weights.

    The weights come from a generator of their own, and torch's global random state stays unchanged.
    """
    with torch.device("meta"):  # where PyTorch draws no weights that would be overwritten
        model = DenseNet(spec, memory_efficient=memory_efficient)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        _initialize(module, generator)
    return model.eval()


def empty_model(spec: DenseNetSpec) -> DenseNet:
    """Return the module on the meta device, in eval mode: names and shapes without memory behind them."""
    with torch.device("meta"):
        return DenseNet(spec).eval()


def loaded_model(spec: DenseNetSpec, state: Mapping[str, Tensor]) -> DenseNet:
    """Return the module in eval mode that holds the tensors of `state` themselves, which must fit it exactly."""
    model = empty_model(spec)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        _fill_filter(module)
    return model


def _initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Kaiming-normal convolutions and zero biases, as the paper and torchvision; norms that change nothing."""
    _fill_filter(module)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.reset_parameters()
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, generator=generator)
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _fill_filter(module: nn.Module) -> None:
    """Give a blur its filter, which a state dict does not hold."""
    if isinstance(module, BlurPool):
        module.filter = module.made_filter()


@contextlib.contextmanager
def _untracked(layer: nn.Module) -> Iterator[None]:
    """Give the norms of `layer` copies of their running statistics: a recomputation must not update them again."""
    kept = [(norm, dict(norm.named_buffers())) for norm in layer.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm, buffers in kept:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)

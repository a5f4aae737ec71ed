"""Parameters and multiply-accumulates of a DenseNet, exactly, from its numbers alone: no torch, no weights.

A convolution of C_in to C_out channels with a K×K kernel has C_in·C_out·K² weights, each used once per output pixel; a
linear layer uses each weight once. Those uses are the MACs; normalizations, activations, pools and biases add none. A
normalization has two parameters per channel (scale and shift); its running statistics are not parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import Size, sides
from densenet_deploy.options import require_range
from densenet_deploy.records import fields_to_plain, to_plain
from densenet_deploy.variants.hidden import named_hidden_layers
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec

Json = dict[str, object]
Sides = tuple[int, int]

LARGEST_IMAGE_SIZE: Final = 65536

_STEM: Final = (*(f"{kind}{index}" for kind in ("conv", "norm", "relu") for index in range(3)), "pool0")
_HEAD: Final = ("norm5", "relu5", "head", "classifier", "logits")
_AFTER_A_PART: Final = re.compile(r"[.:_]")
_BLOCKS: Final = dict.fromkeys(_STEM, "stem") | dict.fromkeys(_HEAD, "head")


@dataclass(frozen=True)
class LayerCost:
    """One layer with parameters: its name (torchvision's, or that of an ONNX node), and its cost for one image.

    `output_shape` is without the batch: (C, H, W), or (C,) for a linear layer.
    """

    name: str
    parameters: int
    macs: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class BlockCost:
    """A part of the network (`stem`, `denseblock1`, `transition1`, …, `head`) and its layers."""

    name: str
    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def to_json(self) -> Json:
        return {"name": self.name, "parameters": self.parameters, "macs": self.macs, "layers": to_plain(self.layers)}


@dataclass(frozen=True)
class ModelCost:
    """The whole network for one image, block by block in execution order."""

    blocks: tuple[BlockCost, ...]

    @classmethod
    def of(cls, layers: Iterable[LayerCost]) -> ModelCost:
        """Group `layers`, in execution order, by the part of the network that their names say."""
        groups: dict[str, list[LayerCost]] = {}
        for layer in layers:
            groups.setdefault(network_part(layer.name), []).append(layer)
        return cls(tuple(BlockCost(name, tuple(group)) for name, group in groups.items()))

    @property
    def layers(self) -> tuple[LayerCost, ...]:
        return tuple(layer for block in self.blocks for layer in block.layers)

    @property
    def parameters(self) -> int:
        return sum(block.parameters for block in self.blocks)

    @property
    def macs(self) -> int:
        return sum(block.macs for block in self.blocks)

    def to_json(self) -> Json:
        """Return `parameters`, `macs` and `blocks` with plain types."""
        return {"parameters": self.parameters, "macs": self.macs, **fields_to_plain(self)}


def network_part(name: str) -> str:
    """Return the part of the network that a layer belongs to; `other` if its name is not one of a DenseNet.

    What a recipe or a backend appended to a name does not matter: `features.conv0:scaled`, `features.conv0_nchwc`.

    >>> network_part("features.denseblock2.denselayer7.conv1"), network_part("/features/conv0/Conv")
    ('denseblock2', 'stem')
    """
    part = _AFTER_A_PART.split(name.replace("/", ".").lstrip(".").removeprefix("features."))[0]
    return part if part.startswith(("denseblock", "transition")) else _BLOCKS.get(part, "other")


def model_cost(spec: DenseNetSpec, image_size: Size = 224) -> ModelCost:
    """Return the cost of `spec` for one image of `image_size` pixels: one number, or (height, width).

    >>> from densenet_deploy.variants import find_variant
    >>> cost = model_cost(find_variant("121").spec)
    >>> cost.parameters, cost.macs
    (7978856, 2834161664)

    Raises:
        UsageError: if the image is too small for the last block to see a pixel.
    """
    sizes = block_sizes(spec, image_size)
    return ModelCost.of([*_stem(spec, image_size), *_blocks(spec, sizes), *_head(spec, sizes)])


def layer_inputs(spec: DenseNetSpec, block: int) -> range:
    """Return the channels that each layer of block number `block` (from 0) reads: k0 + l·k."""
    return range(spec.channels_in[block], spec.channels_out[block], spec.growth_rate)


def stem_size(spec: DenseNetSpec, image_size: Size) -> Sides:
    """Return height and width of the map that the first convolution makes, before any pool."""
    return _halved_up(sides(image_size)) if spec.stem_layers.stride == 2 else sides(image_size)


def block_sizes(spec: DenseNetSpec, image_size: Size) -> tuple[Sides, ...]:
    """Return height and width of the maps in each block, in pixels.

    Raises:
        UsageError: if the image is too small for the last block to see a pixel.
    """
    for side in sides(image_size):
        require_range("image-size", side, 1, LARGEST_IMAGE_SIZE)
        if side < spec.smallest_image_size:
            why = f"leaves the last of {len(spec.blocks)} blocks without a pixel"
            raise UsageError(f"image-size={side}", why, f"give at least {spec.smallest_image_size}")
    height, width = stem_size(spec, image_size)
    if spec.stem_layers.pool != "none":
        height, width = _halved_up((height, width))
    return tuple((height >> transitions, width >> transitions) for transitions in range(len(spec.blocks)))


def _halved_up(size: Sides) -> Sides:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _stem(spec: DenseNetSpec, image_size: Size) -> Iterator[LayerCost]:
    size, stem, entering = stem_size(spec, image_size), spec.stem_layers, spec.in_channels
    for index, width in enumerate(spec.stem_widths):
        yield _conv(f"features.conv{index}", entering, width, stem.kernel, size)
        if stem.norm:
            yield _norm(f"features.norm{index}", width, size)
        entering = width
    if stem.pool == "blur":
        yield _blur(spec.init_features, _halved_up(size))


def _blocks(spec: DenseNetSpec, sizes: tuple[Sides, ...]) -> Iterator[LayerCost]:
    for block, size in enumerate(sizes):
        for index, channels in enumerate(layer_inputs(spec, block)):
            name, narrow = f"features.denseblock{block + 1}.denselayer{index + 1}", spec.bottleneck_widths[block][index]
            yield from _dense_layer(spec, name, channels, narrow, size)
        if block + 1 < len(sizes):
            name, channels = f"features.transition{block + 1}", spec.channels_out[block]
            yield _norm(f"{name}.norm", channels, size)
            yield _conv(f"{name}.conv", channels, spec.channels_in[block + 1], 1, size)


def _dense_layer(spec: DenseNetSpec, name: str, channels: int, narrow: int, size: Sides) -> Iterator[LayerCost]:
    yield _norm(f"{name}.norm1", channels, size)
    if spec.bn_size == 0:
        yield _conv(f"{name}.conv1", channels, spec.growth_rate, 3, size)
        return
    yield _conv(f"{name}.conv1", channels, narrow, 1, size)
    yield _norm(f"{name}.norm2", narrow, size)
    yield _conv(f"{name}.conv2", narrow, spec.growth_rate, 3, size)


def _head(spec: DenseNetSpec, sizes: tuple[Sides, ...]) -> Iterator[LayerCost]:
    if spec.head == "multiscale":
        for number, (channels, size) in enumerate(zip(spec.channels_out, sizes, strict=True), start=1):
            yield _conv(f"head.reduce{number}.conv", channels, SCALE_CHANNELS, 1, size, bias=True)
        yield _linear("classifier", SCALE_CHANNELS * len(sizes), spec.num_classes)
        return
    yield _norm("features.norm5", spec.feature_channels, sizes[-1])
    for name, layer, entering in named_hidden_layers(spec.hidden, spec.pooled_width):
        if layer.kind == "linear":
            yield _linear(f"head.{name}", entering, layer.width, bias=layer.bias)
        if layer.kind == "norm":
            yield LayerCost(f"head.{name}", 2 * entering, 0, (entering,))
    if spec.head == "classifier":
        yield _linear("classifier", spec.row_width, spec.num_classes, bias=spec.bias)


def _conv(name: str, entering: int, leaving: int, kernel: int, size: Sides, *, bias: bool = False) -> LayerCost:
    weights = entering * leaving * kernel**2
    return LayerCost(name, weights + leaving * bias, weights * math.prod(size), (leaving, *size))


def _norm(name: str, channels: int, size: Sides) -> LayerCost:
    return LayerCost(name, 2 * channels, 0, (channels, *size))


def _blur(channels: int, size: Sides) -> LayerCost:
    """The fixed 3x3 filter of the stem's pool: nothing to learn, but a convolution of each channel."""
    return LayerCost("features.pool0.blur", 0, 9 * channels * math.prod(size), (channels, *size))


def _linear(name: str, entering: int, leaving: int, *, bias: bool = True) -> LayerCost:
    return LayerCost(name, entering * leaving + leaving * bias, entering * leaving, (leaving,))

"""How much memory training needs between the forward and the backward pass, as the network is and by checkpointing.

Autograd keeps what the gradients need: the input of every normalization, convolution and average pool, and the result
of every ReLU. A dense layer therefore keeps its concatenation and the normalized copy, two tensors as wide as all that
came before it, so a block needs memory that grows with the square of its depth. Checkpointing (Pleiss et al. 2017,
"Memory-Efficient Implementation of DenseNets") keeps the parts and makes both again in the backward pass, so that the
growth is linear. Counted are feature maps and rows; dropout masks, the indices of the stem's pool, batch statistics,
weights and their gradients are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from densenet_deploy.analysis.cost import Json, block_sizes, layer_inputs, stem_size
from densenet_deploy.options import require_range
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec


@dataclass(frozen=True)
class BlockTrainingMemory:
    """Bytes that the block `name` keeps for the backward pass."""

    name: str
    plain_bytes: int
    checkpointed_bytes: int

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "plain_bytes": self.plain_bytes,
            "checkpointed_bytes": self.checkpointed_bytes,
        }


@dataclass(frozen=True)
class TrainingMemory:
    """What each block keeps, in execution order; all of it is held at once when the backward pass begins."""

    blocks: tuple[BlockTrainingMemory, ...]

    @property
    def plain_bytes(self) -> int:
        return sum(block.plain_bytes for block in self.blocks)

    @property
    def checkpointed_bytes(self) -> int:
        return sum(block.checkpointed_bytes for block in self.blocks)

    def to_json(self) -> Json:
        return {
            "plain_bytes": self.plain_bytes,
            "checkpointed_bytes": self.checkpointed_bytes,
            "blocks": [block.to_json() for block in self.blocks],
        }


def training_memory(
    spec: DenseNetSpec, image_size: int = 224, batch: int = 1, bytes_per_value: int = 4
) -> TrainingMemory:
    """Return what a forward pass in training keeps, by block; see the module for what is counted.

    Raises:
        UsageError: if the image is too small for the last block, or a number is out of range.
    """
    areas = [size**2 for size in block_sizes(spec, image_size)]
    scale = require_range("batch", batch, 1, 1_000_000) * require_range("bytes-per-value", bytes_per_value, 1, 8)
    stem, head = scale * _stem(spec, image_size), scale * _head(spec, areas[-1])
    blocks = [BlockTrainingMemory("stem", stem, stem)]
    for block, area in enumerate(areas):
        plain, checkpointed = scale * area * _plain(spec, block), scale * area * _checkpointed(spec, block)
        blocks.append(BlockTrainingMemory(f"denseblock{block + 1}", plain, checkpointed))
        if block + 1 < len(areas):
            kept = scale * area * _transition(spec, block)
            blocks.append(BlockTrainingMemory(f"transition{block + 1}", kept, kept))
    return TrainingMemory((*blocks, BlockTrainingMemory("head", head, head)))


def _stem(spec: DenseNetSpec, image_size: int) -> int:
    """The image; with the ImageNet stem also what enters and leaves the norm and its ReLU in place."""
    maps = 2 * spec.init_features * stem_size(spec, image_size) ** 2 if spec.stem == "imagenet" else 0
    return 3 * image_size**2 + maps


def _plain(spec: DenseNetSpec, block: int) -> int:
    """Channels kept: each layer's concatenation and its normalized copy, twice the bottleneck."""
    return 2 * sum(layer_inputs(spec, block)) + _bottlenecks(spec, block)


def _checkpointed(spec: DenseNetSpec, block: int) -> int:
    """Channels kept: what the last layer reads, in parts, and twice each bottleneck."""
    return layer_inputs(spec, block)[-1] + _bottlenecks(spec, block)


def _bottlenecks(spec: DenseNetSpec, block: int) -> int:
    return 2 * spec.blocks[block] * spec.bn_size * spec.growth_rate


def _transition(spec: DenseNetSpec, block: int) -> int:
    """Channels kept: the block's output, its normalized copy, and the convolved maps that the pool reads."""
    return 2 * spec.channels_out[block] + spec.channels_in[block + 1]


def _head(spec: DenseNetSpec, area: int) -> int:
    """The last block's output, its normalized copy unless the head reads it as it is, and the classifier's row."""
    if spec.head == "multiscale":
        return spec.feature_channels * area + SCALE_CHANNELS * len(spec.blocks)
    return 2 * spec.feature_channels * area + (spec.feature_channels if spec.head == "classifier" else 0)

"""How much memory the feature maps of a DenseNet need, from its numbers alone: in an inference, and kept by training.

`models.live_memory` measures the same by running any module on PyTorch's meta device. This count stays beside it for
two reasons: PyTorch takes seconds to import, and is not installed where artifacts only run; and the memory of a bus,
which belongs to no run of the PyTorch module, cannot be measured on one. Tests hold the count to what PyTorch keeps.

**Inference.** Steps run one after another in the order of the network. A step allocates its output before it frees any
input; a tensor is freed after its last reader, the image after the first convolution. A normalization with its ReLU
works in place behind a convolution, whose output nothing else reads, and writes a copy in front of a dense layer, a
transition or the head, where it reads a block's features. With *copies*, the features of a block are separate tensors,
and each layer and what follows the block read a fresh concatenation of them (one tensor alone is read as it is). With
a *bus*, a block owns one tensor as wide as its output, into which all of its parts are written.

**Training.** Autograd keeps what the gradients need: the input of every normalization, convolution and average pool,
and the result of every ReLU. A dense layer keeps its concatenation and the normalized copy, two tensors as wide as all
that came before it, so memory grows with the square of a block's depth. *Checkpointing* (Pleiss et al. 2017,
"Memory-Efficient Implementation of DenseNets") keeps the parts alone and makes the rest of a layer, its bottleneck too,
again in the backward pass, so that the growth is linear.

Not counted: weights and their gradients, batch statistics, dropout masks, pooling indices, scratch space of a backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from densenet_deploy.analysis.cost import Json, block_sizes, layer_inputs, stem_size
from densenet_deploy.manifest import Size, sides
from densenet_deploy.options import require_range
from densenet_deploy.records import fields_to_plain
from densenet_deploy.variants.hidden import named_hidden_layers
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec


@dataclass(frozen=True)
class BlockMemory:
    """The peak of live activations, in bytes, while the block `name` runs."""

    name: str
    bus_bytes: int
    copies_bytes: int


@dataclass(frozen=True)
class ActivationMemory:
    """The peak of each block in execution order: `stem`, `denseblock1`, `transition1`, …, `head`."""

    blocks: tuple[BlockMemory, ...]

    @property
    def bus_bytes(self) -> int:
        """The peak of the whole inference with a bus per block."""
        return max(block.bus_bytes for block in self.blocks)

    @property
    def copies_bytes(self) -> int:
        """The peak of the whole inference with a fresh copy per concatenation."""
        return max(block.copies_bytes for block in self.blocks)

    def to_json(self) -> Json:
        return {"bus_bytes": self.bus_bytes, "copies_bytes": self.copies_bytes, **fields_to_plain(self)}


@dataclass(frozen=True)
class BlockTrainingMemory:
    """Bytes that the block `name` keeps for the backward pass."""

    name: str
    plain_bytes: int
    checkpointed_bytes: int


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
        sums = {"plain_bytes": self.plain_bytes, "checkpointed_bytes": self.checkpointed_bytes}
        return sums | fields_to_plain(self)


def activation_memory(
    spec: DenseNetSpec, image_size: Size = 224, batch: int = 1, bytes_per_value: int = 4
) -> ActivationMemory:
    """Return the peak of live activations by block, counted as this module says.

    Raises:
        UsageError: if the image is too small for the last block, or a number is out of range.
    """
    scale = _scale(batch, bytes_per_value)
    with_bus, with_copies = (_forward(spec, image_size, bus=bus).peaks() for bus in (True, False))
    return ActivationMemory(
        tuple(BlockMemory(name, scale * with_bus[name], scale * with_copies[name]) for name in with_bus)
    )


def training_memory(
    spec: DenseNetSpec, image_size: Size = 224, batch: int = 1, bytes_per_value: int = 4
) -> TrainingMemory:
    """Return what a forward pass in training keeps, by block, counted as this module says.

    Raises:
        UsageError: if the image is too small for the last block, or a number is out of range.
    """
    areas = [math.prod(size) for size in block_sizes(spec, image_size)]
    stem = _kept_by_stem(spec, image_size)
    is_block_input = spec.stem_layers.norm and spec.stem_layers.pool == "none"  # one of the parts that block 1 keeps
    kept = [("stem", stem, stem - (spec.init_features * areas[0] if is_block_input else 0))]
    for block, area in enumerate(areas):
        inputs, bottlenecks = layer_inputs(spec, block), 2 * sum(spec.bottleneck_widths[block])
        kept.append((f"denseblock{block + 1}", area * (2 * sum(inputs) + bottlenecks), area * inputs[-1]))
        if block + 1 < len(areas):  # the block's output, its normalized copy, the convolved maps that the pool reads
            transition = area * (2 * spec.channels_out[block] + spec.channels_in[block + 1])
            kept.append((f"transition{block + 1}", transition, transition))
    kept.append(("head", *2 * (_kept_by_head(spec, areas[-1]),)))
    scale = _scale(batch, bytes_per_value)
    return TrainingMemory(tuple(BlockTrainingMemory(name, scale * plain, scale * lean) for name, plain, lean in kept))


def _scale(batch: int, bytes_per_value: int) -> int:
    return require_range("batch", batch, 1, 1_000_000) * require_range("bytes-per-value", bytes_per_value, 1, 8)


def _kept_by_stem(spec: DenseNetSpec, image_size: Size) -> int:
    """The image; with norms what enters each and leaves its ReLU; what a blur reads, without and with its margin."""
    (height, width), stem = stem_size(spec, image_size), spec.stem_layers
    maps = 2 * sum(spec.stem_widths) * height * width if stem.norm else 0
    blurred = spec.init_features * (height * width + (height + 2) * (width + 2)) if stem.pool == "blur" else 0
    return spec.in_channels * math.prod(sides(image_size)) + maps + blurred


def _kept_by_head(spec: DenseNetSpec, area: int) -> int:
    """The last block's output, what the pool reads unless that is a mean alone, and the rows that layers read."""
    if spec.head == "multiscale":
        return spec.feature_channels * area + SCALE_CHANNELS * len(spec.blocks)
    maps = spec.feature_channels * area * (1 if spec.pooling == "avg" else 2)
    return maps + _kept_rows(spec)


def _kept_rows(spec: DenseNetSpec) -> int:
    """What linear layers and norms read, and ReLUs make; a linear layer behind a ReLU reads what that keeps."""
    kept, behind_relu = 0, False
    for _, layer, width in named_hidden_layers(spec.hidden, spec.pooled_width):
        kept += 0 if behind_relu else width
        behind_relu = layer.kind == "relu"
    return kept + (spec.row_width if spec.head == "classifier" and not behind_relu else 0)


@dataclass(frozen=True)
class _Step:
    """Writes a tensor of `values` numbers, read from the tensors that the steps `reads` wrote."""

    block: str
    values: int
    reads: tuple[int, ...]


class _Tape:
    """The steps of one forward pass; a tensor is known by the number of the step that wrote it."""

    def __init__(self) -> None:
        self.block = "stem"
        self._steps: list[_Step] = []

    def write(self, values: int, *reads: int) -> int:
        """Add a step to the current block and return the tensor that it writes."""
        self._steps.append(_Step(self.block, values, reads))
        return len(self._steps) - 1

    def peaks(self) -> dict[str, int]:
        """Return the largest number of live values while each block runs."""
        last_reader = {tensor: number for number, step in enumerate(self._steps) for tensor in step.reads}
        live, peaks = 0, dict[str, int]()
        for number, step in enumerate(self._steps):
            live += step.values
            peaks[step.block] = max(peaks.get(step.block, live), live)
            touched = {*step.reads, number}
            live -= sum(self._steps[tensor].values for tensor in touched if last_reader.get(tensor, tensor) == number)
        return peaks


def _forward(spec: DenseNetSpec, image_size: Size, *, bus: bool) -> _Tape:
    tape = _Tape()
    areas = [math.prod(size) for size in block_sizes(spec, image_size)]
    widths = spec.channels_out if bus else spec.channels_in
    maps, outputs = _stem(tape, spec, image_size), []
    for block, area in enumerate(areas):
        entered = tape.write(widths[block] * area, maps)
        tape.block = f"denseblock{block + 1}"
        outputs.append((_on_bus if bus else _with_copies)(tape, spec, block, area, entered))
        if block + 1 < len(areas):
            tape.block = f"transition{block + 1}"
            normalized = tape.write(spec.channels_out[block] * area, outputs[-1])
            maps = tape.write(spec.channels_in[block + 1] * area, normalized)
    tape.block = "head"
    _head(tape, spec, areas, outputs)
    return tape


def _stem(tape: _Tape, spec: DenseNetSpec, image_size: Size) -> int:
    """Write what the first block's input is made from: what the pool reads, or the last convolution where none is."""
    area, stem = math.prod(stem_size(spec, image_size)), spec.stem_layers
    maps = tape.write(spec.in_channels * math.prod(sides(image_size)))
    for width in spec.stem_widths[: None if stem.pool != "none" else -1]:
        maps = tape.write(width * area, maps)
    return tape.write(spec.init_features * area, maps) if stem.pool == "blur" else maps


def _on_bus(tape: _Tape, spec: DenseNetSpec, block: int, area: int, bus: int) -> int:
    for channels, narrow in zip(layer_inputs(spec, block), spec.bottleneck_widths[block], strict=True):
        _before_last_conv(tape, narrow, tape.write(channels * area, bus), area)  # that one writes into the bus
    return bus


def _with_copies(tape: _Tape, spec: DenseNetSpec, block: int, area: int, entered: int) -> int:
    features = [entered]
    for channels, narrow in zip(layer_inputs(spec, block), spec.bottleneck_widths[block], strict=True):
        whole = tape.write(channels * area, *features) if len(features) > 1 else entered
        new = _before_last_conv(tape, narrow, tape.write(channels * area, whole), area)
        features.append(tape.write(spec.growth_rate * area, new))
    return tape.write(spec.channels_out[block] * area, *features)


def _before_last_conv(tape: _Tape, narrow: int, normalized: int, area: int) -> int:
    """Return what a layer's 3x3 convolution reads: the bottleneck, or the normalized features where there is none."""
    return tape.write(narrow * area, normalized) if narrow else normalized


def _head(tape: _Tape, spec: DenseNetSpec, areas: list[int], outputs: list[int]) -> None:
    if spec.head == "multiscale":
        reduced = (tape.write(SCALE_CHANNELS * area, maps) for maps, area in zip(outputs, areas, strict=True))
        pooled = [tape.write(SCALE_CHANNELS, maps) for maps in reduced]
        features = tape.write(SCALE_CHANNELS * len(pooled), *pooled)
    else:
        features = tape.write(spec.pooled_width, tape.write(spec.feature_channels * areas[-1], outputs[-1]))
        for _, layer, width in named_hidden_layers(spec.hidden, spec.pooled_width):
            features = tape.write(layer.width or width, features)
    if spec.head != "features":
        tape.write(spec.num_classes, features)

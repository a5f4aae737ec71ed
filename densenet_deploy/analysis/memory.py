"""How much memory the activations of one inference need at their peak, with and without a bus per dense block.

The model of liveness: steps run one after another in the order of the network; a step allocates its output before it
frees any input; a tensor is freed after its last reader, the image after the first convolution. A normalization with
its ReLU works in place behind a convolution, whose output nobody else reads, and writes a copy in front of a dense
layer, a transition or the head, where it reads a block's features. Weights and scratch space of a backend are not
counted.

*copies*: the features of a block are separate tensors, and each layer reads a fresh concatenation of them (one tensor
alone is read as it is), as does what follows the block: the graph taken by its word.
*bus*: a block owns one tensor as wide as its output; what enters the block and what each layer makes is written into
its place there, so there is nothing to concatenate.
"""

from __future__ import annotations

from dataclasses import dataclass

from densenet_deploy.analysis.cost import Json, block_sizes, layer_inputs, stem_size
from densenet_deploy.options import require_range
from densenet_deploy.variants.spec import SCALE_CHANNELS, DenseNetSpec


@dataclass(frozen=True)
class BlockMemory:
    """The peak of live activations, in bytes, while the block `name` runs."""

    name: str
    bus_bytes: int
    copies_bytes: int

    def to_json(self) -> Json:
        return {"name": self.name, "bus_bytes": self.bus_bytes, "copies_bytes": self.copies_bytes}


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
        return {
            "bus_bytes": self.bus_bytes,
            "copies_bytes": self.copies_bytes,
            "blocks": [block.to_json() for block in self.blocks],
        }


def activation_memory(
    spec: DenseNetSpec, image_size: int = 224, batch: int = 1, bytes_per_value: int = 4
) -> ActivationMemory:
    """Return the peak of live activations by block, by the model of liveness that the module states.

    Raises:
        UsageError: if the image is too small for the last block, or a number is out of range.
    """
    scale = require_range("batch", batch, 1, 1_000_000) * require_range("bytes-per-value", bytes_per_value, 1, 8)
    with_bus = _forward(spec, image_size, bus=True).peaks()
    with_copies = _forward(spec, image_size, bus=False).peaks()
    return ActivationMemory(
        tuple(BlockMemory(name, scale * with_bus[name], scale * with_copies[name]) for name in with_bus)
    )


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
        live, peaks = 0, dict.fromkeys((step.block for step in self._steps), 0)
        for number, step in enumerate(self._steps):
            live += step.values
            peaks[step.block] = max(peaks[step.block], live)
            touched = {*step.reads, number}
            live -= sum(self._steps[tensor].values for tensor in touched if last_reader.get(tensor, tensor) == number)
        return peaks


def _forward(spec: DenseNetSpec, image_size: int, *, bus: bool) -> _Tape:
    tape = _Tape()
    areas = [size**2 for size in block_sizes(spec, image_size)]
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


def _stem(tape: _Tape, spec: DenseNetSpec, image_size: int) -> int:
    """Write what the first block's input is made from: the convolved maps, or the image where no pool follows."""
    image = tape.write(3 * image_size**2)
    if spec.stem == "cifar":
        return image
    return tape.write(spec.init_features * stem_size(spec, image_size) ** 2, image)


def _on_bus(tape: _Tape, spec: DenseNetSpec, block: int, area: int, bus: int) -> int:
    for channels in layer_inputs(spec, block):
        new = _before_last_conv(tape, spec, tape.write(channels * area, bus), area)
        tape.write(0, new, bus)
    return bus


def _with_copies(tape: _Tape, spec: DenseNetSpec, block: int, area: int, entered: int) -> int:
    features = [entered]
    for channels in layer_inputs(spec, block):
        whole = tape.write(channels * area, *features) if len(features) > 1 else entered
        new = _before_last_conv(tape, spec, tape.write(channels * area, whole), area)
        features.append(tape.write(spec.growth_rate * area, new))
    return tape.write(spec.channels_out[block] * area, *features)


def _before_last_conv(tape: _Tape, spec: DenseNetSpec, normalized: int, area: int) -> int:
    """Return what a layer's 3x3 convolution reads: the bottleneck, or the normalized features where there is none."""
    return tape.write(spec.bn_size * spec.growth_rate * area, normalized) if spec.bn_size else normalized


def _head(tape: _Tape, spec: DenseNetSpec, areas: list[int], outputs: list[int]) -> None:
    if spec.head == "multiscale":
        reduced = (tape.write(SCALE_CHANNELS * area, maps) for maps, area in zip(outputs, areas, strict=True))
        pooled = [tape.write(SCALE_CHANNELS, maps) for maps in reduced]
        features = tape.write(SCALE_CHANNELS * len(pooled), *pooled)
    else:
        features = tape.write(spec.feature_channels, tape.write(spec.feature_channels * areas[-1], outputs[-1]))
    if spec.head != "features":
        tape.write(spec.num_classes, features)

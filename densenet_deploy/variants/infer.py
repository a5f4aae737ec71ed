"""Read a DenseNet's numbers back from the names and shapes of its parameters (torchvision's names).

Layers are counted by the highest index, so that a checkpoint that lacks some of them is still recognized. Dropout
leaves no trace in the weights and reads as 0. What does not fit is refused by name, with the way around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from densenet_deploy.errors import CheckpointError, UsageError
from densenet_deploy.variants.spec import MOST_CLASSES, DenseNetSpec, compressed
from densenet_deploy.variants.stems import STEM_TABLE, stem_of

Shapes = Mapping[str, tuple[int, ...]]

_LAYER: Final = re.compile(r"features\.denseblock(\d{1,3})\.denselayer(\d{1,3})\.")
_WAY_OUT: Final = "give another file, or the network itself: densenet_deploy.load(module) in Python"
_FIRST_LAYER: Final = "features.denseblock1.denselayer1"


def spec_from_shapes(shapes: Shapes) -> DenseNetSpec:
    """Return the spec of the DenseNet whose parameters have these names and `shapes`.

    The compression is the simplest number that gives the transitions their channels, and of stems with the same
    parameters the first is taken. Hidden layers of the head are not read here.

    Raises:
        CheckpointError: if they are not those of a DenseNet, or of one with another stem or classifier.
    """
    in_channels = _convolution(shapes, "features.conv0.weight")[1]
    stem, init_features = _stem(shapes)
    blocks = _blocks(shapes)
    growth_rate, widths = _layer_numbers(shapes, blocks)
    head, num_classes = _head(shapes)
    try:
        spec = DenseNetSpec(
            growth_rate=growth_rate,
            blocks=blocks,
            init_features=init_features,
            compression=_compression(shapes, len(blocks)),
            bn_size=1 if widths else 0,
            stem=_blurred(stem, growth_rate, blocks),
            num_classes=DenseNetSpec.num_classes if num_classes is None else num_classes,
            head=head,
            in_channels=in_channels,
            bias=num_classes is None or "classifier.bias" in shapes,
        )
        return spec.with_bottlenecks(widths) if widths else spec
    except UsageError as exc:
        raise _unsupported(f"{exc.subject} {exc.why}") from exc


def _stem(shapes: Shapes) -> tuple[str, int]:
    """(the first stem with these parameters, the channels that leave it)."""
    kernel, channels, convolutions = 0, 0, 0
    while convolutions == 0 or f"features.conv{convolutions}.weight" in shapes:
        channels, _, kernel, _ = _convolution(shapes, f"features.conv{convolutions}.weight")
        convolutions += 1
    has_norm = "features.norm0.weight" in shapes
    stem = stem_of(kernel, convolutions, norm=has_norm)
    if stem is None:
        count = f"{convolutions} convolutions of {kernel}x{kernel}" if convolutions > 1 else f"{kernel}x{kernel}"
        norm = "with" if has_norm else "without"
        raise _unsupported(f"its stem of {count} {norm} norm0 is not one of {', '.join(map(_described, STEM_TABLE))}")
    return stem, channels


def _described(name: str) -> str:
    stem = STEM_TABLE[name]
    count = f"{stem.convolutions} of " if stem.convolutions > 1 else ""
    return f"{name} ({count}{stem.kernel}x{stem.kernel} {'with' if stem.norm else 'without'} norm0)"


def _blurred(stem: str, growth_rate: int, blocks: tuple[int, ...]) -> str:
    """Timm's deep stem blurs in its DenseNet-121 alone, which the weights do not show."""
    return "deep-blur" if stem == "deep" and (growth_rate, blocks) == (32, (6, 12, 24, 16)) else stem


def _head(shapes: Shapes) -> tuple[str, int | None]:
    """(head, classes); a network without classifier has no classes to count."""
    if "classifier.weight" not in shapes:
        return "features", None
    shape = shapes["classifier.weight"]
    if len(shape) != 2 or not 1 <= shape[0] <= MOST_CLASSES:
        raise _unsupported(f"classifier.weight has shape {shape}, not (classes, features)")
    multiscale = any(name.startswith("head.reduce") for name in shapes)
    return "multiscale" if multiscale else "classifier", shape[0]


def _layer_numbers(shapes: Shapes, blocks: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(growth rate, channels of the bottleneck of every layer); plain layers have none.

    A layer that is missing is taken to be as wide as the first.
    """
    first = _convolution(shapes, f"{_FIRST_LAYER}.conv1.weight")[0]
    if f"{_FIRST_LAYER}.conv2.weight" not in shapes:
        return first, ()
    growth_rate = _convolution(shapes, f"{_FIRST_LAYER}.conv2.weight")[0]
    if growth_rate == 0:
        raise _unsupported("its layers add no channels")
    layers = (f"features.denseblock{b}.denselayer{n}" for b, count in enumerate(blocks, 1) for n in range(1, count + 1))
    names = (f"{layer}.conv1.weight" for layer in layers)
    return growth_rate, tuple(_convolution(shapes, name)[0] if name in shapes else first for name in names)


def _blocks(shapes: Shapes) -> tuple[int, ...]:
    """Layers of each block."""
    layers: dict[int, int] = {}
    for name in shapes:
        if match := _LAYER.match(name):
            block, layer = int(match[1]), int(match[2])
            layers[block] = max(layer, layers.get(block, 0))
    missing = next((block for block in range(1, max(layers) + 1) if block not in layers), None)
    if missing is not None:
        raise _unsupported(f"dense block {missing} of {max(layers)} is missing")
    return tuple(layers[block] for block in sorted(layers))


def _compression(shapes: Shapes, blocks: int) -> float:
    """The simplest compression (½, 1, then the fewest decimals) that every transition agrees with."""
    transitions = [_convolution(shapes, f"features.transition{number}.conv.weight")[:2] for number in range(1, blocks)]
    for candidate in _simple_fractions():
        if all(kept == compressed(channels, candidate) for kept, channels in transitions):
            return candidate
    raise _unsupported(f"its transitions keep channels (kept, from) = {transitions}, which no single compression gives")


def _simple_fractions() -> list[float]:
    return [0.5, 1.0] + [step / 10**digits for digits in (1, 2, 3, 4) for step in range(1, 10**digits)]


def _convolution(shapes: Shapes, name: str) -> tuple[int, int, int, int]:
    """The shape of a convolution's weight: (out, in, height, width)."""
    if name not in shapes:
        raise _unsupported(f"{name} is missing")
    shape = shapes[name]
    if len(shape) != 4 or shape[2] != shape[3]:
        raise _unsupported(f"{name} has shape {shape}, not that of a square convolution")
    out, into, height, width = shape
    return out, into, height, width


def _unsupported(why: str) -> CheckpointError:
    return CheckpointError("weights", f"not a DenseNet with torchvision's parameter names: {why}", _WAY_OUT)

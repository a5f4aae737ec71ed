"""How the features of a DenseNet grow layer by layer, put together from the shapes that a run of it showed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import DataError

_LAYER: Final = re.compile(r"denseblock(\d+)\.denselayer(\d+)")


@dataclass(frozen=True)
class GrowthStep:
    """The features of block number `block` (from 1) behind layer number `layer` (0: what enters the block).

    `channels` of `size` by `size` pixels.
    """

    block: int
    layer: int
    channels: int
    size: int

    @property
    def values(self) -> int:
        """Numbers held for one image."""
        return self.channels * self.size**2


def growth_steps(shapes: Mapping[str, tuple[int, ...]]) -> tuple[GrowthStep, ...]:
    """Return the steps in execution order.

    Args:
        shapes: (C, H, W) of what was made by `conv0`, by each layer, `denseblock1.denselayer1` and so on, and by each
            transition's convolution, `transition1`; a transition's H and W do not matter.

    Raises:
        DataError: if no layer was seen, or not what enters its block.
    """
    layers = {(int(match[1]), int(match[2])): shapes[name] for name in shapes if (match := _LAYER.fullmatch(name))}
    if not layers:
        raise DataError("growth", "no dense layer was seen in the run", "plot a DenseNet exported here")
    steps: list[GrowthStep] = []
    for (block, layer), (channels, size, _) in sorted(layers.items()):
        if layer == 1:
            source = "conv0" if block == 1 else f"transition{block - 1}"
            if source not in shapes:
                raise DataError("growth", f"{source} was not seen in the run", "plot a DenseNet exported here")
            steps.append(GrowthStep(block, 0, shapes[source][0], size))
        steps.append(GrowthStep(block, layer, steps[-1].channels + channels, size))
    return tuple(steps)

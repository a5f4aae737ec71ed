"""How the features of a DenseNet grow layer by layer, from the shapes that a run of it shows."""

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
        DataError: if the shapes of a layer, or of what enters its block, are missing.
    """
    layers = {(int(match[1]), int(match[2])): shapes[name] for name in shapes if (match := _LAYER.fullmatch(name))}
    if not layers:
        raise DataError("growth", "the run shows no dense layer", "plot a DenseNet exported here")
    steps: list[GrowthStep] = []
    for (block, layer), (channels, size, _) in sorted(layers.items()):
        if layer == 1:
            source = "conv0" if block == 1 else f"transition{block - 1}"
            if source not in shapes:
                raise DataError("growth", f"the run does not show {source}", "plot a DenseNet exported here")
            steps.append(GrowthStep(block, 0, shapes[source][0], size))
        steps.append(GrowthStep(block, layer, steps[-1].channels + channels, size))
    return tuple(steps)

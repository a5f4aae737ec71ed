"""Feature reuse: how much each layer of a dense block uses the features of every layer before it.

For a target layer, the average absolute weight of its first convolution on the channels of one source: the input of the
block, or an earlier layer. Averages of one block are divided by its largest, so that blocks compare.
Training makes rows differ; an untrained column is even, and columns fade as the initialization shrinks with the fan-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densenet_deploy.errors import DataError
from densenet_deploy.variants.spec import DenseNetSpec

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReuseMap:
    """One block: `weights[source, target]`, 0 to 1, NaN where the target comes before the source.

    Source 0 is the input of the block, source s is layer s; target t is layer t + 1. (L, L) for L layers.
    """

    block: str
    weights: Array


def reuse_maps(spec: DenseNetSpec, weights: Mapping[str, npt.NDArray[np.floating]]) -> tuple[ReuseMap, ...]:
    """Return a map for each block.

    Args:
        spec: the architecture.
        weights: the weights of every layer's first convolution, (out, in, kernel, kernel), by the layer's name:
            `denseblock1.denselayer1`, …

    Raises:
        DataError: if a layer's weights are missing or do not read the channels that the architecture says.
    """
    return tuple(_map_of(spec, block, weights) for block in range(len(spec.blocks)))


def _map_of(spec: DenseNetSpec, block: int, weights: Mapping[str, npt.NDArray[np.floating]]) -> ReuseMap:
    layers, entering = spec.blocks[block], spec.channels_in[block]
    name = f"denseblock{block + 1}"
    averages = np.full((layers, layers), np.nan)
    for target in range(layers):
        taken = _weights_of(f"{name}.denselayer{target + 1}", weights, entering + target * spec.growth_rate)
        by_channel = np.abs(taken.astype(np.float64)).mean(axis=(0, 2, 3))
        averages[0, target] = by_channel[:entering].mean()
        grown = by_channel[entering:].reshape(target, spec.growth_rate)
        averages[1 : target + 1, target] = grown.mean(axis=1)
    largest = np.nanmax(averages)
    return ReuseMap(name, averages / largest if largest > 0 else averages)


def _weights_of(layer: str, weights: Mapping[str, npt.NDArray[np.floating]], channels: int) -> npt.NDArray[np.floating]:
    found = weights.get(layer)
    if found is None:
        raise DataError(layer, "has no weights of a first convolution", "plot an FP32 model exported here")
    if found.ndim != 4 or found.shape[1] != channels:
        raise DataError(layer, f"reads {found.shape[1:2]} channels, not {channels}", "plot a model exported here")
    return found

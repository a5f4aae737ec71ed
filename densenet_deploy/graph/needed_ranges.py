"""Which values of a dense block its readers can tell apart.

A norm and its ReLU, relu(s·x + t), give zero for every x on one side of θ = −t/s: below it for s > 0, above it for s < 0.
So a channel needs no value below the smallest θ of its readers if all of them have s > 0, and none above the largest
if all have s < 0; a reader with s = 0 needs none at all. Stored codes may end there: saturation is what all readers
would have done anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from densenet_deploy.graph.bus import Bus, Reader, Segment
from densenet_deploy.graph.graph_pass import Double, Float, is_operator, only_reader
from densenet_deploy.graph.norms import scale_and_shift, why_no_affine


class Needed(NamedTuple):
    """The smallest and the largest value of each channel of a bus that its readers can tell apart, (C,) each."""

    low: Double
    high: Double

    def of(self, segment: Segment) -> Needed:
        """Return what is needed of the channels of `segment`."""
        part = slice(segment.offset, segment.offset + segment.channels)
        return Needed(self.low[part], self.high[part])


def needed_range(bus: Bus) -> Needed:
    """Return what the readers of `bus` need of each of its channels; infinity where they need all."""
    low, high = np.full(bus.channels, np.inf), np.full(bus.channels, -np.inf)
    for reader in bus.readers:
        part = slice(reader.segment.offset, reader.segment.offset + reader.segment.channels)
        wanted = _wanted_by(reader)
        low[part], high[part] = np.minimum(low[part], wanted.low), np.maximum(high[part], wanted.high)
    return Needed(low, high)


def narrowed(low: Float, high: Float, needed: Needed) -> tuple[Float, Float]:
    """Return the ranges `low` to `high`, (C,) each, without what is not needed; one value where that is nothing."""
    above = np.maximum(low, np.minimum(needed.low, high))
    below = np.minimum(high, np.maximum(needed.high, above))
    return above.astype(np.float32), below.astype(np.float32)


def _wanted_by(reader: Reader) -> Needed:
    norm = reader.node
    everything = Needed(np.full(reader.segment.channels, -np.inf), np.full(reader.segment.channels, np.inf))
    if not is_operator(norm, "BatchNormalization") or reader.index != 0 or why_no_affine(norm) is not None:
        return everything
    relu = only_reader(norm.outputs[0])
    if relu is None or not is_operator(relu, "Relu"):
        return everything
    scale, shift = scale_and_shift(norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        threshold = -shift / scale
    return Needed(
        np.where(scale > 0, threshold, np.where(scale < 0, -np.inf, np.inf)),
        np.where(scale < 0, threshold, np.where(scale > 0, np.inf, -np.inf)),
    )

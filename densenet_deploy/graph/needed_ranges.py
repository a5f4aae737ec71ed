"""Which values of a dense block its readers can tell apart.

A norm and its ReLU, relu(s·x + t), give zero for every x on one side of θ = −t/s: below it for s > 0, above for s < 0.
So a channel needs no value below the smallest θ of its readers if all of them have s > 0, and none above the largest
if all have s < 0; a reader with s = 0 needs none at all. Stored codes may end there: saturation is what all readers
would have done anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from densenet_deploy.graph.bus import Bus, Reader, Segment
from densenet_deploy.graph.graph_pass import Double, Float, is_operator, only_reader
from densenet_deploy.graph.norms import scale_and_shift, why_no_affine


class Needed(NamedTuple):
    """The smallest and the largest value of each channel of a bus that its readers can tell apart, (C,) each."""

    low: Double
    high: Double

    def of(self, segment: Segment) -> Needed:
        """Return what is needed of the channels of `segment`."""
        return Needed(segment.of(self.low), segment.of(self.high))

    def finite(self) -> Needed:
        """Return the same with the largest float32 in the place of infinity."""
        largest = np.finfo(np.float32).max
        return Needed(np.clip(self.low, -largest, largest), np.clip(self.high, -largest, largest))


def needed_range(bus: Bus) -> Needed:
    """Return what the readers of `bus` need of each of its channels; infinity where they need all, as outputs do."""
    low, high = np.full(bus.channels, np.inf), np.full(bus.channels, -np.inf)
    wanted = [(reader.segment, _wanted_by(reader)) for reader in bus.readers]
    wanted += [(output, _everything(output)) for output in bus.outputs]
    for tensor, needed in wanted:
        part = slice(tensor.offset, tensor.offset + tensor.channels)
        low[part], high[part] = np.minimum(low[part], needed.low), np.maximum(high[part], needed.high)
    return Needed(low, high)


def through(norm: ir.Node, needed: Needed) -> Needed:
    """Return what `norm`, a BatchNormalization of constants, makes of what is needed of its input."""
    scale, shift = scale_and_shift(norm)
    ends = np.stack([scale * needed.low + shift, scale * needed.high + shift])
    return Needed(ends.min(axis=0), ends.max(axis=0)).finite()


def narrowed(low: Float, high: Float, needed: Needed) -> tuple[Float, Float]:
    """Return the ranges `low` to `high`, (C,) each, without what is not needed; one value where that is nothing."""
    above = np.maximum(low, np.minimum(needed.low, high))
    below = np.minimum(high, np.maximum(needed.high, above))
    return above.astype(np.float32), below.astype(np.float32)


def _everything(tensor: Segment) -> Needed:
    return Needed(np.full(tensor.channels, -np.inf), np.full(tensor.channels, np.inf))


def _wanted_by(reader: Reader) -> Needed:
    norm, everything = reader.node, _everything(reader.segment)
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

"""Compare the inner tensors of two models over the same batches."""

from __future__ import annotations

from collections.abc import Iterable

from densenet_deploy.parity.compare import LayerComparison, LayerMeter
from densenet_deploy.runtime.feeds import Feeds


def compare_layers(reference: Iterable[Feeds], candidate: Iterable[Feeds]) -> LayerComparison:
    meter = LayerMeter()
    for ours, theirs in zip(reference, candidate, strict=True):
        meter.update(ours, theirs)
    return meter.result()

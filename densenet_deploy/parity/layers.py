"""Where two models part: the parity of every intermediate tensor that both have, in execution order.

The tensors come from runs of both models over the same inputs, one mapping of name → array a batch. No model runs here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from densenet_deploy.errors import DataError
from densenet_deploy.parity.compare import Parity, ParityMeter
from densenet_deploy.parity.gates import Gate, failed_gates
from densenet_deploy.runtime.feeds import Feeds


@dataclass(frozen=True)
class LayerParity:
    """The parity of the tensor `name`."""

    name: str
    parity: Parity


@dataclass(frozen=True)
class SkippedLayer:
    """A tensor that could not be compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LayerComparison:
    """Tensors compared, in the reference's order, and those that were not."""

    layers: tuple[LayerParity, ...]
    skipped: tuple[SkippedLayer, ...]


class LayerMeter:
    """Compares the tensors of two models batch by batch, matched by name."""

    def __init__(self) -> None:
        self._meters: dict[str, ParityMeter] = {}
        self._reasons: dict[str, str] = {}

    def update(self, reference: Feeds, candidate: Feeds) -> None:
        """Add the tensors of one batch; the order of the first `reference` is the execution order."""
        for name in dict.fromkeys((*reference, *candidate)):
            reason = _reason_to_skip(name, reference, candidate)
            if reason is None:
                meter = self._meters.setdefault(name, ParityMeter(class_scores=False))
                meter.update(reference[name], candidate[name])
            else:
                self._reasons.setdefault(name, reason)

    def result(self) -> LayerComparison:
        """Return the comparison of all batches so far; a tensor that did not match once is skipped whole."""
        compared = (name for name in self._meters if name not in self._reasons)
        return LayerComparison(
            tuple(LayerParity(name, self._meters[name].result()) for name in compared),
            tuple(SkippedLayer(name, reason) for name, reason in self._reasons.items()),
        )


def compare_layers(reference: Iterable[Feeds], candidate: Iterable[Feeds]) -> LayerComparison:
    """Compare the tensors of two models over the same batches, holding one batch at a time.

    Raises:
        DataError: if one gives more batches than the other.
    """
    meter = LayerMeter()
    for ours, theirs in zip_longest(reference, candidate):
        if ours is None or theirs is None:
            raise DataError("parity", "one model ran more batches than the other", "run both over the same inputs")
        meter.update(ours, theirs)
    return meter.result()


def worst_first(layers: Iterable[LayerParity]) -> list[LayerParity]:
    """Return the layers by rising SQNR, NaN or infinite values before all; equals stay in execution order."""
    return sorted(layers, key=lambda layer: -math.inf if layer.parity.nonfinite else layer.parity.sqnr_db)


def first_divergence(layers: Iterable[LayerParity], gates: Sequence[Gate]) -> str | None:
    """Return the name of the first layer, in execution order, that misses a gate; None if all pass."""
    return next((layer.name for layer in layers if failed_gates(layer.parity, gates)), None)


def _reason_to_skip(name: str, reference: Feeds, candidate: Feeds) -> str | None:
    if name not in candidate:
        return "only in the reference"
    if name not in reference:
        return "only in the candidate"
    ours, theirs = reference[name], candidate[name]
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} in the reference, {theirs.shape} in the candidate"
    return None if ours.size else "empty"

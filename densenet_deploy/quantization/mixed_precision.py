"""Find the cheapest layers to keep float, with far fewer trials than there are layers.

Quantization noise adds up: the noise power at the logits is nearly the sum of the layers' contributions, n = Σ n_l. So
the share of a group of layers is n(all INT8) − n(group float), and a group with a small share need not be split. The
search is adaptive group testing (after Dorfman 1943, here with measured shares): blocks first; the group with the most
noise for its cost is halved, one half is measured, the other has the rest; this gives single layers in the order of
their benefit. Their order gives growing sets, and the shortest that is accepted is found by doubling and bisection. A
set is always accepted by a file that was written and measured, never by the sum.

Whole blocks are tried first, because the noise of a block's bus does not belong to a single layer: it goes when the
last layer that reads the bus in INT8 goes. Single layers are then chosen only if they are cheaper. Finally the result
is thinned out: its most expensive half goes back to INT8 if that is accepted, else halves of the halves. Either search
stops after a few trials for every binary digit of the number of layers, so that trials grow as its logarithm.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

Names = frozenset[str]

_RANKING_TRIALS: Final = 6
_THINNING_TRIALS: Final = 2


@dataclass(frozen=True)
class Layer:
    """A layer that may stay float: its name, its block, and its cost in float (in any unit)."""

    name: str
    block: str
    cost: float = 1.0


@dataclass(frozen=True)
class MixedPrecision:
    """The layers to keep float, in execution order, and the trials it took; `satisfied` False: nothing is enough."""

    float_layers: tuple[str, ...]
    trials: int
    satisfied: bool


def find_float_layers(
    layers: Sequence[Layer], noise: Callable[[Names], float], accepts: Callable[[Names], bool]
) -> MixedPrecision:
    """Return the layers to keep float so that `accepts` holds.

    Args:
        layers: all layers in execution order.
        noise: returns the noise power of the output, relative to that of the signal, with these layers float.
        accepts: returns whether the file with these layers float is good enough.
    """
    search = _Search(layers, noise, accepts)
    chosen = search.run()
    left = _names(layers) if chosen is None else chosen
    found = tuple(layer.name for layer in layers if layer.name in left)
    return MixedPrecision(found, search.trials, chosen is not None)


def blocks_of(layers: Sequence[Layer]) -> dict[str, tuple[Layer, ...]]:
    """Return the layers by block, blocks in the order of their first layers."""
    names = dict.fromkeys(layer.block for layer in layers)
    return {name: tuple(layer for layer in layers if layer.block == name) for name in names}


class _Search:
    def __init__(
        self, layers: Sequence[Layer], noise: Callable[[Names], float], accepts: Callable[[Names], bool]
    ) -> None:
        self._layers, self._noise_of, self._accepts_of = layers, noise, accepts
        self._noises: dict[Names, float] = {}
        self._verdicts: dict[Names, bool] = {}

    @property
    def trials(self) -> int:
        """The number of different sets that were tried."""
        return len(self._noises.keys() | self._verdicts.keys())

    def run(self) -> Names | None:
        if self._accepts(()):
            return Names()
        if not self._accepts(self._layers):
            return None
        blocks = self._whole_blocks()
        layers = self._single_layers(cheaper_than=_cost(blocks))
        return _names(self._thinned(blocks if layers is None else layers))

    def _whole_blocks(self) -> list[Layer]:
        total = self._noise(())
        blocks = sorted(blocks_of(self._layers).values(), key=lambda block: (self._noise(block) - total) / _cost(block))
        chosen: list[Layer] = []
        for block in blocks:
            chosen += block
            if self._accepts(chosen):
                break
        return chosen

    def _single_layers(self, cheaper_than: float) -> list[Layer] | None:
        ranking: list[Layer] = []
        size, last = 1, self._trials_until(_RANKING_TRIALS)
        for layer in _by_worth(self._layers, self._noise(()), self._noise):
            ranking.append(layer)
            if _cost(ranking) >= cheaper_than or self.trials > last:
                return None
            if len(ranking) == size:
                if self._accepts(ranking):
                    break
                size *= 2
        low, high = size // 2, size  # a set of `low` was refused, one of `high` accepted
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._accepts(ranking[:middle]) else (middle, high)
        return ranking[:high]

    def _thinned(self, chosen: list[Layer]) -> list[Layer]:
        """Return `chosen` without layers that it does not need, expensive ones first, in a bounded number of trials."""
        last = self._trials_until(_THINNING_TRIALS)
        groups = [sorted(chosen, key=lambda layer: layer.cost)]
        while groups and self.trials < last:
            group = groups.pop()
            rest = [layer for layer in chosen if layer not in group]
            if self._accepts(rest):
                chosen = rest
            elif len(group) > 1:
                half = len(group) // 2
                groups += group[:half], group[half:]
        return chosen

    def _trials_until(self, per_digit: int) -> int:
        """Return the number of trials after so many more for each binary digit of the number of layers."""
        return self.trials + per_digit * len(self._layers).bit_length()

    def _accepts(self, layers: Sequence[Layer]) -> bool:
        names = _names(layers)
        if names not in self._verdicts:
            self._verdicts[names] = self._accepts_of(names)
        return self._verdicts[names]

    def _noise(self, layers: Sequence[Layer]) -> float:
        names = _names(layers)
        if names not in self._noises:
            self._noises[names] = self._noise_of(names)
        return self._noises[names]


def _by_worth(layers: Sequence[Layer], total: float, noise: Callable[[Sequence[Layer]], float]) -> Iterator[Layer]:
    """Yield single layers, those first that remove the most noise for their cost."""
    heap: list[tuple[float, int, tuple[Layer, ...], float]] = []
    order = itertools.count()

    def push(group: tuple[Layer, ...], share: float) -> None:
        heapq.heappush(heap, (-share / _cost(group), next(order), group, share))

    for block in blocks_of(layers).values():
        push(block, total - noise(block))
    while heap:
        _, _, group, share = heapq.heappop(heap)
        if len(group) == 1:
            yield group[0]
            continue
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        known = total - noise(first)
        push(first, known)
        push(second, share - known)


def _cost(layers: Sequence[Layer]) -> float:
    return sum(layer.cost for layer in layers)


def _names(layers: Sequence[Layer]) -> Names:
    return Names(layer.name for layer in layers)

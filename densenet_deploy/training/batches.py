"""The batches of an epoch, decoded and augmented by threads ahead of the network.

Order and draws depend on the seed, the epoch and the place of an image in it, and on nothing else: not on threads,
processes, or whether the run was resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.training.augment import augmented
from densenet_deploy.training.data import Example

ORDER, DRAWS, MIX, DROPOUT = range(4)
"""What a generator is for, as part of its seed."""

_AHEAD: Final = 2
"""Steps that are prepared before they are asked for."""


@dataclass(frozen=True)
class Augmentation:
    """How images are varied: see `augmented`."""

    kind: str
    flip: bool


@dataclass(frozen=True)
class Shard:
    """A part of a batch: its number, inputs (N, C, H, W) float32, and classes (N,) int64."""

    number: int
    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True)
class _Prepared:
    """A shard whose images are being prepared."""

    number: int
    inputs: list[Future[Array]]
    classes: list[int]

    def shard(self) -> Shard:
        inputs = np.stack([future.result() for future in self.inputs])
        return Shard(self.number, torch.from_numpy(inputs), torch.tensor(self.classes))


class Batches:
    """The batches of `examples`, each in `shards` parts of the same size, of which a process takes some.

    Args:
        examples: what to train on.
        preprocessing: of the network.
        augmentation: how images are varied.
        batch_size: images of all shards together.
        shards: parts of a batch.
        seed: of order and draws.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        batch_size: int,
        shards: int,
        seed: int,
    ) -> None:
        self._examples, self._preprocessing, self._augmentation = examples, preprocessing, augmentation
        self.batch_size, self.shards, self._seed = batch_size, shards, seed

    @property
    def steps(self) -> int:
        """Batches of an epoch; what does not fill one is left out."""
        return len(self._examples) // self.batch_size

    def epoch(self, epoch: int, rank: int = 0, count: int = 1) -> Iterator[list[Shard]]:
        """Yield for every step the shards of the process `rank` of `count`: those whose number it is, modulo `count`.

        Raises:
            InputError: if an image cannot be read.
        """
        order = np.random.default_rng([self._seed, ORDER, epoch]).permutation(len(self._examples))
        mine = range(rank, self.shards, count)
        pool = ThreadPoolExecutor(usable_cpus(), "decode")
        waiting: deque[list[_Prepared]] = deque()
        try:
            for step in range(self.steps):
                waiting.append([self._submitted(pool, epoch, order, step, shard) for shard in mine])
                if len(waiting) > _AHEAD:
                    yield [one.shard() for one in waiting.popleft()]
            while waiting:
                yield [one.shard() for one in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _submitted(self, pool: ThreadPoolExecutor, epoch: int, order: Array, step: int, shard: int) -> _Prepared:
        size = self.batch_size // self.shards
        start = step * self.batch_size + shard * size
        chosen = [(place, int(order[place])) for place in range(start, start + size)]
        futures = [pool.submit(self._input, epoch, place, index) for place, index in chosen]
        return _Prepared(shard, futures, [self._examples[index].index for _, index in chosen])

    def _input(self, epoch: int, place: int, index: int) -> Array:
        generator = np.random.default_rng([self._seed, DRAWS, epoch, place])
        image = self._examples[index].loaded(self._preprocessing.shape[0])
        return augmented(image, self._preprocessing, self._augmentation.kind, generator, flip=self._augmentation.flip)

"""Batches: the same for any number of processes, other ones in every epoch, and full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densenet_deploy.errors import ImageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.training.batches import Augmentation, Batches
from densenet_deploy.training.data import Example

PLAIN = Preprocessing(image_size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3)
EXAMPLES = tuple(Example(np.full((8, 8, 3), number, np.uint8), number) for number in range(22))


def batches(kind="none", *, shards=2, seed=0, examples=EXAMPLES, size=8) -> Batches:
    return Batches(examples, PLAIN, Augmentation(kind, flip=False), batch_size=size, shards=shards, seed=seed)


def classes(found: Batches, epoch=0) -> list[int]:
    return [index for shards in found.epoch(epoch) for shard in shards for index in shard.classes.tolist()]


def test_an_epoch_has_full_batches_and_shows_no_image_twice():
    found = batches()
    assert found.steps == 2
    seen = classes(found)
    assert len(seen) == len(set(seen)) == 16


def test_each_epoch_and_seed_has_its_own_order():
    assert classes(batches()) == classes(batches())
    assert classes(batches()) != classes(batches(), epoch=1) != classes(batches(seed=1), epoch=1)


def test_an_input_belongs_to_its_class():
    for shards in batches().epoch(0):
        for shard in shards:
            assert torch.equal((shard.inputs[:, 0, 0, 0] * 255).round().long(), shard.classes)
            assert shard.inputs.shape == (4, 3, 8, 8)
            assert shard.inputs.dtype == torch.float32


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_shards_of_one(count):
    alone = list(batches("crop", shards=4).epoch(3))
    shared = [list(batches("crop", shards=4).epoch(3, rank, count)) for rank in range(count)]
    for step, shards in enumerate(alone):
        assert [shard.number for shard in shards] == [0, 1, 2, 3]
        for shard in shards:
            (other,) = [one for one in shared[shard.number % count][step] if one.number == shard.number]
            assert torch.equal(shard.inputs, other.inputs)
            assert torch.equal(shard.classes, other.classes)


def test_an_image_is_varied_anew_in_every_epoch():
    first, second = (
        {
            int(shard.classes[0]): shard.inputs[0]
            for shards in batches("crop", shards=8, size=16).epoch(epoch)
            for shard in shards
        }
        for epoch in (0, 1)
    )
    shared = [index for index in first.keys() & second.keys() if index]
    assert shared
    assert any(not torch.equal(first[index], second[index]) for index in shared)


def test_an_unreadable_image_ends_the_epoch(tmp_path):
    file = tmp_path / "bad.png"
    file.write_bytes(b"nothing")
    with pytest.raises(ImageError):
        list(batches(examples=(Example(file, 0),) * 8).epoch(0))


def test_an_epoch_may_be_left_early():
    steps = batches().epoch(0)
    next(steps)
    steps.close()

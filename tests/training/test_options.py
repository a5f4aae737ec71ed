"""How to train: limits just inside and just outside, learning rates, schedules."""

from __future__ import annotations

import math

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.training.options import TrainOptions, check_shards


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("epochs", 1, 0),
        ("batch_size", 2, 1),
        ("batch_size", 65_536, 65_537),
        ("lr", 0.0, -1e-9),
        ("head_lr", 1e3, 1001.0),
        ("weight_decay", 1.0, 1.01),
        ("warmup_epochs", 90.0, 90.5),
        ("mixup", 10.0, 10.1),
        ("label_smoothing", 0.99, 1.0),
        ("ema", 0.999999, 1.0),
        ("temperature", 0.01, 0.0),
        ("alpha", 1.0, 1.1),
        ("seed", 2**32 - 1, 2**32),
        ("max_bad", 0, -1),
        ("optimizer", "adamw", "adam"),
        ("schedule", "cosine", "cos"),
        ("augment", "crop", "crops"),
        ("amp", "fp16", "fp8"),
        ("freeze", "until=norm0", "until="),
        ("freeze", "features", "all"),
        ("shards", 32, 64),  # of a batch of 64: two images in each, or one
        ("shards", 4, 5),
    ],
)
def test_limits(name: str, inside: object, outside: object) -> None:
    assert getattr(TrainOptions(**{name: inside}), name) == inside
    with pytest.raises(UsageError):
        TrainOptions(**{name: outside})


def test_the_learning_rate_is_lower_for_trained_weights_and_the_head_s_own_wins() -> None:
    assert TrainOptions().learning_rates(is_pretrained=False) == (0.1, 0.1)
    assert TrainOptions().learning_rates(is_pretrained=True) == (0.01, 0.01)
    assert TrainOptions(optimizer="adamw").learning_rates(is_pretrained=False) == (1e-3, 1e-3)
    assert TrainOptions(lr=1e-4, head_lr=1e-2).learning_rates(is_pretrained=True) == (1e-4, 1e-2)


def test_the_paper_s_schedule_divides_at_half_and_at_three_quarters() -> None:
    options = TrainOptions(epochs=4)
    rates = [options.rate_at(step, steps_per_epoch=2) for step in range(8)]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_other_schedules() -> None:
    assert [TrainOptions(epochs=4, schedule="constant").rate_at(step, 1) for step in range(4)] == [1.0] * 4
    cosine = [TrainOptions(epochs=4, schedule="cosine").rate_at(step, 1) for step in range(4)]
    assert cosine == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    warm = TrainOptions(epochs=4, schedule="constant", warmup_epochs=2)
    assert [warm.rate_at(step, 2) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_small_images_are_shifted_and_parts_of_large_ones_are_resized() -> None:
    assert TrainOptions().augmentation(64) == "crop"
    assert TrainOptions().augmentation(65) == "resized-crop"
    assert TrainOptions(augment="none").augmentation(32) == "none"


def test_what_decides_the_weights_leaves_out_places_and_checks() -> None:
    numbers = TrainOptions().numbers()
    assert set(numbers) >= {"epochs", "lr", "freeze", "seed", "shards", "amp", "ema"}
    assert {"teacher", "device", "max_bad", "check", "memory_efficient"}.isdisjoint(numbers)


def test_a_batch_is_divided_into_shards_of_two_images_or_more() -> None:
    assert check_shards(8, 4) == 4
    for size, shards in ((8, 3), (8, 8), (6, 4)):
        with pytest.raises(UsageError) as caught:
            check_shards(size, shards)
        assert caught.value.subject == f"batch-size={size}"

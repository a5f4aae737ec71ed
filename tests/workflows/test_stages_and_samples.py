"""Stages are named and timed; samples are seeded, of both kinds, and spread over a folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.workflows.samples import samples_of, seeded_samples
from densenet_deploy.workflows.stages import Stages

SMALL = Preprocessing(image_size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_stages_are_timed_in_order_and_announced_when_they_begin():
    heard: list[str] = []
    stages = Stages(heard.append)
    with stages("build"):
        assert heard == ["build"]
    with stages("write"):
        pass
    assert list(stages.seconds) == heard == ["build", "write"]
    assert all(seconds >= 0 for seconds in stages.seconds.values())


def test_a_stage_that_fails_lets_the_error_through():
    stages = Stages()
    with pytest.raises(ZeroDivisionError), stages("build"):
        _ = 1 / 0
    assert stages.seconds == {}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_seeded_samples_are_as_many_as_asked_for_and_the_same_every_time(count):
    one, two = (list(seeded_samples(count, SMALL, seed=3)) for _ in range(2))
    assert [(sample.shape, sample.dtype) for sample in one] == [((1, 3, 8, 8), np.float32)] * count
    np.testing.assert_array_equal(one, two)


def test_another_seed_gives_other_samples():
    assert not np.array_equal(next(seeded_samples(1, SMALL, 0)), next(seeded_samples(1, SMALL, 1)))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 5]), (4, [0, 2, 5, 7]), (7, [0, 1, 2, 4, 5, 7, 8]), (10, range(10)), (99, range(10))],
)
def test_images_are_spread_over_the_folder(tmp_path, count, expected):
    for index in range(10):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    reds = [round(float(sample[0, 0, 0, 0]) * 255) for sample in samples_of(tmp_path, SMALL, count)]
    assert reds == list(expected)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError):
        samples_of(tmp_path, SMALL, 4)


def test_a_stage_that_counts_its_steps_tells_how_many_of_how_many():
    heard: list[tuple[object, ...]] = []
    stages = Stages(lambda *event: heard.append(event))
    with stages("calibrate") as step:
        step(1, 3)
        step(2, None)
    assert heard == [("calibrate",), ("calibrate", 1, 3), ("calibrate", 2, None)]

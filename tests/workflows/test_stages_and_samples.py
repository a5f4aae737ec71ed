"""Stages are named and timed; samples are seeded, of both kinds, and spread over a folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images, noise
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


def test_what_a_long_stage_takes_is_said_beforehand(caplog):
    heard: list[tuple[object, ...]] = []
    with caplog.at_level("INFO", "densenet_deploy"):
        stages = Stages(lambda *words: heard.append(words))
        with stages("speed", "up to 20 s") as step:
            assert [record.getMessage() for record in caplog.records] == ["speed (up to 20 s)"]
            step(1, 2)
    assert heard == [("speed (up to 20 s)",), ("speed (up to 20 s)", 1, 2)]
    assert list(stages.seconds) == ["speed"]


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


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [8, (8, 12)])
def test_seeded_samples_have_the_shape_of_the_models_images(size, channels):
    preprocessing = Preprocessing.default(size, channels)
    samples = list(seeded_samples(4, preprocessing))
    assert {sample.shape for sample in samples} == {(1, *preprocessing.shape)}
    np.testing.assert_array_equal(samples[0::2], list(noise(2, (1, *preprocessing.shape))))
    np.testing.assert_array_equal(samples[1::2], list(natural_images(2, preprocessing)))


def test_gray_images_of_a_folder_are_read_in_one_channel(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((6, 10), 257 * index + 1, np.uint16)).save(tmp_path / f"{index}.png")
    preprocessing = Preprocessing((4, 8), "none", (0.0,), (1.0,))
    for data in (tmp_path, [tmp_path / f"{index}.png" for index in range(3)]):
        samples = np.concatenate(list(samples_of(data, preprocessing, 3)))
        assert samples.shape == (3, 1, 4, 8)
        np.testing.assert_allclose(samples[:, 0, 0, 0] * 65535, [1, 258, 515], rtol=1e-6)  # all 16 bits


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

"""Rendered characters: every image is decided by its seed, split and number, and classes differ in every face."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from examples.glyphs import CANVAS, HEIGHT, SPLITS
from examples.rendered_characters import CHARACTERS, FACES, LABELS, images_of, mask_of, write_split


def test_there_are_a_hundred_classes_with_folders_of_their_own():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 100
    assert (LABELS[0], LABELS[9], LABELS[-1]) == ("U+0031", "U+0041", "U+00DF")
    assert len({label.lower() for label in LABELS}) == 100


def test_a_number_is_always_the_same_image_and_another_seed_split_or_number_another_one():
    together = images_of("training", range(5))
    assert together.shape == (5, 64, 64, 3)
    assert together.dtype == np.uint8
    assert np.array_equal(together[3], images_of("training", [3])[0])
    others = [together[3], *(images_of(split, [3])[0] for split in SPLITS[1:])]
    others += [images_of("training", [103])[0], images_of("training", [3], seed=1)[0]]
    assert all(not np.array_equal(one, other) for one, other in combinations(others, 2))


@pytest.mark.parametrize("face", FACES)
def test_each_face_draws_a_hundred_different_characters_that_fill_the_mask(face):
    masks = [mask_of(character, face) for character in CHARACTERS]
    assert len({mask.tobytes() for mask in masks}) == 100
    for mask in masks:
        left, top, right, bottom = mask.getbbox()
        assert max(right - left, bottom - top) == pytest.approx(HEIGHT, abs=1)
        assert left == pytest.approx(CANVAS - right, abs=2)
        assert top == pytest.approx(CANVAS - bottom, abs=2)


@pytest.mark.parametrize("processes", [1, 2])
def test_written_images_are_those_of_their_numbers(tmp_path, processes):
    write_split(tmp_path, "held_out", 101, processes=processes)
    assert len(list(tmp_path.iterdir())) == 100
    shown = {number: tmp_path / LABELS[number % 100] / f"{number:06d}.png" for number in (0, 99, 100)}
    for number, file in shown.items():
        assert np.array_equal(np.asarray(Image.open(file)), images_of("held_out", [number])[0])

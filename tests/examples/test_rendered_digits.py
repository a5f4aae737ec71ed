"""Rendered digits: every image is decided by its seed, split and number, and shows the digit it says."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch
from examples.digits_data import digits_split
from examples.glyphs import CANVAS, HANDS, HEIGHT, SPLITS, glyph, scans_of
from examples.rendered_digits import IMAGE_SIZE, PREPROCESSING, Nuisance, images_of, inputs_from, write_split

CALM = replace(Nuisance().eased(0), heights=(40, 40), contrast=(90, 90))


def test_a_number_is_always_the_same_image():
    together, alone = images_of("training", range(40, 60)), images_of("training", [47])
    assert together.images.shape == (20, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert together.images.dtype == np.uint8
    assert np.array_equal(together.images[7], alone.images[0])


def test_another_seed_split_or_number_is_another_image():
    images = [
        images_of("training", [3]),
        images_of("training", [13]),
        images_of("held_out", [3]),
        images_of("training", [3], seed=1),
    ]
    for first, second in combinations(images, 2):
        assert not np.array_equal(first.images, second.images)


def test_splits_share_neither_images_nor_scans():
    images = [{p.tobytes() for p in images_of(split, range(60)).images} for split in SPLITS]
    scans = [{scan for digit in range(10) for scan in scans_of(split, digit)} for split in SPLITS]
    assert all(len(seen) == 60 for seen in images)
    for first, second in (*combinations(images, 2), *combinations(scans, 2)):
        assert not first & second
    assert sum(len(scans_of(split, digit)) for split in SPLITS for digit in range(10)) == 1797


def test_every_scan_stays_on_its_side_of_the_digits_split():
    held_out = {image.tobytes() for image in digits_split()[1].images}
    assert {scan for digit in range(10) for scan in scans_of("held_out", digit)} == held_out


def test_the_digit_is_the_last_of_the_number():
    data = images_of("calibration", range(25, 45))
    assert data.digits.tolist() == [*range(5, 10), *range(10), *range(5)]
    assert data.digits.dtype == np.int64


@pytest.mark.parametrize("digit", range(10))
def test_without_nuisance_a_image_shows_the_digit_of_its_number(digit):
    """What stands out from the background is one of the ten masks, to the pixel a few in a hundred: that digit's."""
    rng = np.random.default_rng(0)
    numbers = [digit + 10 * turn for turn in range(20)]
    read = []
    for image in images_of("training", numbers, CALM).images.astype(np.float32):
        away = np.abs(image - np.median(image, axis=(0, 1))).sum(2)
        templates = [(hand, shown) for hand in HANDS if hand != "handwriting" for shown in range(10)]
        scores = [_likeness(away, glyph(hand, shown, "training", rng)) for hand, shown in templates]
        if max(scores) > 0.9:  # the rest is handwriting, which no template fits
            read.append(templates[int(np.argmax(scores))][1])
    assert len(read) >= 8
    assert set(read) == {digit}


def _likeness(away, mask):
    """Correlation of what stands out with a mask shrunk to 40 pixels of height in the middle of 64."""
    side = round(CANVAS * 40 / HEIGHT)
    small = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    start = (IMAGE_SIZE - side) // 2
    small[start : start + side, start : start + side] = np.asarray(mask.resize((side, side)))
    return np.corrcoef(away.ravel(), small.ravel())[0, 1]


@pytest.mark.parametrize("hand", HANDS)
def test_each_hand_writes_ten_different_digits(hand):
    masks = [glyph(hand, digit, "training", np.random.default_rng(0)) for digit in range(10)]
    assert all(mask.size == (CANVAS, CANVAS) and mask.getextrema() == (0, 255) for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 10
    for mask in masks:
        left, top, right, bottom = mask.getbbox()
        assert HEIGHT - 12 <= bottom - top <= HEIGHT + 12  # strokes widen, scans keep a margin
        assert 0 < left < right < CANVAS
        assert top > 0


def test_nuisance_is_eased_from_all_of_it_to_none():
    full, half, none = (Nuisance().eased(share) for share in (1, 0.5, 0))
    assert full == Nuisance()
    assert none.noise == (0, 0)
    assert none.most_degrees == none.most_shift == none.most_lines == none.most_fragments == none.crossed_share == 0
    assert none.heights == (full.heights[1], full.heights[1])
    assert none.contrast[0] > half.contrast[0] > full.contrast[0]
    assert half.most_degrees == full.most_degrees / 2


def test_noise_and_contrast_are_what_was_asked_for():
    still = images_of("training", range(20), CALM).images.astype(float)
    noisy = images_of("training", range(20), replace(CALM, noise=(10, 10))).images.astype(float)
    inside = (still > 40) & (still < 215)  # nothing is clipped there: noise is rarely beyond four deviations
    assert np.std((noisy - still)[inside]) == pytest.approx(10, rel=0.05)
    assert np.std(still) > 0


def test_written_images_read_back_as_what_training_saw(tmp_path):
    data = write_split(tmp_path, "held_out", 24)
    files = [tmp_path / str(digit) / f"{number:04d}.png" for number, digit in enumerate(data.digits)]
    assert sorted(tmp_path.rglob("*.png")) == sorted(files)
    seen = prepare_batch([load_image(file) for file in files], PREPROCESSING)
    assert np.array_equal(inputs_from(data.images), seen)
    assert np.array_equal(data.images, images_of("held_out", range(24)).images)

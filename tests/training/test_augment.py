"""Images as training sees them: the same draws give the same image, and nothing else happens to it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import prepare
from densenet_deploy.training.augment import augmented

PLAIN = Preprocessing(image_size=16, resize=16, mean=(0.0,) * 3, std=(1.0,) * 3)
PIXELS = np.random.default_rng(0).integers(1, 256, (16, 16, 3), np.uint8)  # none is black


def of(pixels, kind, seed=0, *, flip=False, preprocessing=PLAIN):
    return augmented(LoadedImage.from_array(pixels), preprocessing, kind, np.random.default_rng(seed), flip=flip)


def inference(pixels):
    return prepare(LoadedImage.from_array(pixels), PLAIN)


def test_none_is_what_inference_sees():
    assert np.array_equal(of(PIXELS, "none"), inference(PIXELS))


@pytest.mark.parametrize("kind", ["none", "crop", "resized-crop"])
def test_a_generator_decides_everything(kind):
    assert np.array_equal(of(PIXELS, kind, 5, flip=True), of(PIXELS, kind, 5, flip=True))
    assert len({of(PIXELS, kind, seed, flip=True).tobytes() for seed in range(20)}) > 1


def test_half_of_the_images_are_mirrored():
    whole, mirrored = inference(PIXELS), inference(PIXELS[:, ::-1].copy())
    count = 0
    for seed in range(100):
        seen = of(PIXELS, "none", seed, flip=True)
        count += np.array_equal(seen, mirrored)
        assert np.array_equal(seen, mirrored) or np.array_equal(seen, whole)
    assert 35 < count < 65  # a fair coin is outside in one of 500 such runs, and these seeds never change


def test_a_crop_is_shifted_by_up_to_an_eighth_with_black_outside():
    whole, shifts = inference(PIXELS), set()
    padded = np.pad(whole, ((0, 0), (2, 2), (2, 2)))
    for seed in range(200):
        seen = of(PIXELS, "crop", seed)
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(padded[:, top : top + 16, left : left + 16], seen)
        ]
        assert len(places) == 1
        shifts.update(places)
    assert len(shifts) == 25


def test_a_resized_crop_is_a_part_of_the_image():
    """On a horizontal ramp, the range of values tells which part was taken."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0).repeat(3, axis=2)
    widths = []
    for seed in range(200):
        row = of(ramp, "resized-crop", seed)[0, 8] * 255
        assert (np.diff(row) > 0).all()
        widths.append((row[-1] - row[0]) * 16 / 15)
    # from √(0.08·3/4) of the width to all of it; what is drawn comes near both ends
    assert 0.24 * 256 < min(widths) < 0.35 * 256
    assert 0.9 * 256 < max(widths) <= 257


def test_an_image_of_which_no_part_fits_gives_its_middle():
    line = np.zeros((1, 300, 3), np.uint8)
    line[:, 149:151] = 255
    seen = of(line, "resized-crop", 0)
    assert seen.shape == (3, 16, 16)
    assert seen.max() > 0.5


def test_models_of_one_and_four_channels():
    gray = Preprocessing(image_size=16, resize=16, mean=(0.0,), std=(1.0,))
    image = LoadedImage(Image.fromarray(PIXELS).convert("L"))
    assert augmented(image, gray, "resized-crop", np.random.default_rng(0), flip=True).shape == (1, 16, 16)
    four = Preprocessing(image_size=16, resize=16, mean=(0.0,) * 4, std=(1.0,) * 4)
    pixels = np.dstack([PIXELS, np.zeros((16, 16), np.uint8)])  # a fourth channel of 0 hides nothing
    seen = augmented(LoadedImage.from_array(pixels), four, "crop", np.random.default_rng(0), flip=False)
    assert np.array_equal(seen[:3], of(PIXELS, "crop"))
    assert not seen[3].any()

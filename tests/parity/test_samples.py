"""Seeded inputs: the same for a seed, in range, and with the spectrum that they promise."""

import itertools

import numpy as np
import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import IMAGENET_MEAN, Preprocessing
from densenet_deploy.parity.samples import natural_images, noise

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def images(count=8, size=128, preprocessing=PLAIN, seed=1):
    return np.concatenate(list(natural_images(count, size, preprocessing, seed)))


def spectral_slope(images):
    """Slope of log power against log radial frequency, from one cycle an image to the highest of all directions."""
    size = images.shape[-1]
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * size
    power = np.mean(np.abs(np.fft.fft2(images)) ** 2, axis=(0, 1))
    radii = np.arange(1, size // 2)
    profile = [power[np.abs(cycles - radius) < 0.5].mean() for radius in radii]
    return np.polyfit(np.log(radii), np.log(profile), 1)[0]


def test_noise_is_standard_normal_float32_of_the_shape():
    images = list(noise(4, (1, 3, 64, 64), seed=3))
    assert all(image.shape == (1, 3, 64, 64) and image.dtype == np.float32 for image in images)
    # 49152 values: mean and deviation scatter by 1/√n = 0.0045 and half that; five times either never happens
    assert np.mean(images) == pytest.approx(0.0, abs=0.023)
    assert np.std(images) == pytest.approx(1.0, abs=0.023)


@pytest.mark.parametrize(
    "samples",
    [lambda count, seed: noise(count, (1, 3, 8, 8), seed), lambda count, seed: natural_images(count, 8, PLAIN, seed)],
    ids=["noise", "natural images"],
)
def test_a_seed_means_the_same_samples_and_more_only_add(samples):
    few, many, other = (np.stack(list(samples(count, seed))) for count, seed in ((3, 7), (5, 7), (3, 8)))
    np.testing.assert_array_equal(few, many[:3])
    assert not np.any(np.all(few == other, axis=(1, 2, 3, 4)))
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(many, 2))


def test_natural_images_have_a_power_spectrum_of_slope_minus_two():
    # Exactly −2 before clipping: cutting 8 % of the values adds a little power at all frequencies, most visibly at high
    # ones, and whole-number rings sample 1/f² coarsely near the centre. Both together measure 0.05.
    assert spectral_slope(images()) == pytest.approx(-2.0, abs=0.1)


def test_white_noise_has_a_flat_spectrum():
    assert spectral_slope(np.concatenate(list(noise(8, (1, 3, 128, 128), seed=1)))) == pytest.approx(0.0, abs=0.1)


def test_natural_images_have_the_range_brightness_and_colours_of_images():
    channels = images().swapaxes(0, 1).reshape(3, -1)
    assert channels.min() == 0.0
    assert channels.max() == 1.0
    # Clipping the lower side more than the upper lifts the mean by about 0.01.
    np.testing.assert_allclose(channels.mean(axis=1), IMAGENET_MEAN, atol=0.02)
    red_green, red_blue, green_blue = np.corrcoef(channels)[np.triu_indices(3, 1)]
    assert min(red_green, green_blue) > red_blue > 0.5


def test_natural_images_are_normalized_as_the_model_wants():
    preprocessing = Preprocessing()
    mean, std = (np.array(triple)[:, None, None] for triple in (preprocessing.mean, preprocessing.std))
    normalized = images(2, 16, preprocessing)
    assert normalized.shape == (2, 3, 16, 16)
    assert normalized.dtype == np.float32
    # float32 rounds each side to 6e-8 of values up to 3
    np.testing.assert_allclose(normalized, (images(2, 16) - mean) / std, atol=1e-6)


def test_the_smallest_image_has_one_pixel():
    assert np.isfinite(images(1, 1)).all()
    assert images(1, 1).shape[-2:] == (1, 1)
    with pytest.raises(UsageError) as caught:
        natural_images(1, 0, PLAIN)
    assert caught.value.subject == "size=0"

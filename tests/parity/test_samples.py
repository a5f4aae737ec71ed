"""Seeded inputs: the same for a seed, those of a plain reference, and with the spectrum that they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from densenet_deploy.manifest import IMAGENET_MEAN, Preprocessing
from densenet_deploy.parity.samples import natural_images, noise


def plain(size=128, channels=3):
    """Images of any size in 0..1."""
    return Preprocessing(size, mean=(0.0,) * channels, std=(1.0,) * channels)


# Each principal component of ImageNet's colours, times the deviation along it, as a column: 0.4663690, 0.1371131 and
# 0.0670820 are the square roots of the variances 0.2175, 0.0188 and 0.0045.
MIXING = np.array(
    [
        [-0.264664, 0.098612, 0.026893],
        [-0.270867, -0.000617, -0.054605],
        [-0.272173, -0.095266, 0.028195],
    ]
)


# The length of the mean of its three rows: what a gray image of those colours deviates by.
GRAY_DEVIATION = 0.269236


def images(count=8, size=128, channels=3, seed=1):
    return np.concatenate(list(natural_images(count, plain(size, channels), seed)))


def reference_plane(height, width, rng):
    """A plane by a Fourier transform over all frequencies: mean 0, deviation 1."""
    phases = np.angle(np.fft.fft2(rng.standard_normal((height, width))))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    radius[0, 0] = np.inf
    plane = np.fft.ifft2(np.exp(1j * phases) / radius).real
    return plane / np.sqrt((plane**2).mean())


def reference_image(height, width, rng):
    """The same image of three channels, 0 to 1."""
    planes = [reference_plane(height, width, rng) for _ in range(3)]
    colours = sum(MIXING[:, part, None, None] * planes[part] for part in range(3))
    return np.clip(colours + np.reshape(IMAGENET_MEAN, (3, 1, 1)), 0.0, 1.0)


@pytest.mark.parametrize("size", [2, 9, 16, (9, 16), (16, 9), (5, 2)])
def test_natural_images_are_those_of_a_plain_reference(size):
    height, width = size if isinstance(size, tuple) else (size, size)
    rng = np.random.default_rng(5)
    expected = [reference_image(height, width, rng) for _ in range(2)]
    # the mixing matrix has six digits, and planes of this size reach 4 deviations
    np.testing.assert_allclose(images(2, size, seed=5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("size", [9, (16, 9)])
def test_with_other_channels_than_three_each_is_a_gray_image_of_its_own(size, channels):
    height, width = size if isinstance(size, tuple) else (size, size)
    rng = np.random.default_rng(5)
    planes = [[reference_plane(height, width, rng) for _ in range(channels)] for _ in range(2)]
    expected = np.clip(np.array(planes) * GRAY_DEVIATION + np.mean(IMAGENET_MEAN), 0.0, 1.0)
    np.testing.assert_allclose(images(2, size, channels, seed=5), expected, rtol=0, atol=1e-5)


COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def square_image(size, preprocessing, rng):
    """The operations of version 0.1.0, which knew nothing but square images of three channels, one by one."""
    planes, side = [], max(2, size)
    for _ in range(3):
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
        amplitude = np.reciprocal(frequency, out=np.zeros_like(frequency), where=frequency > 0)
        phase = np.angle(np.fft.rfft2(rng.standard_normal((side, side))))
        plane = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(side, side))
        planes.append(plane / plane.std())
    mean, std, middle = (np.array(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std, IMAGENET_MEAN))
    colours = np.tensordot(COMPONENTS * np.sqrt([0.2175, 0.0188, 0.0045]), np.stack(planes), axes=1)
    return ((np.clip(colours + middle, 0.0, 1.0)[:, :size, :size] - mean) / std).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 7, 32, 64])
def test_square_images_of_three_channels_are_those_of_older_versions_to_the_last_bit(size):
    """Figures of parity stay comparable."""
    rng, preprocessing = np.random.default_rng(7), Preprocessing(size)
    expected = [square_image(size, preprocessing, rng) for _ in range(2)]
    np.testing.assert_array_equal(np.concatenate(list(natural_images(2, preprocessing, 7))), expected)


def test_one_pixel_is_the_corner_of_four():
    assert images(1, 1).shape == (1, 3, 1, 1)
    np.testing.assert_array_equal(images(1, 1), images(1, 2)[:, :, :1, :1])
    np.testing.assert_array_equal(images(1, (1, 5), 1), images(1, (2, 5), 1)[:, :, :1])
    np.testing.assert_array_equal(images(1, (5, 1), 1), images(1, (5, 2), 1)[:, :, :, :1])


def spectral_slope(images):
    """Slope of log power against log radial frequency, from one cycle an image to the highest of all directions."""
    size = images.shape[-1]
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * size
    power = np.mean(np.abs(np.fft.fft2(images)) ** 2, axis=(0, 1))
    radii = np.arange(1, size // 2)
    profile = [power[np.abs(cycles - radius) < 0.5].mean() for radius in radii]
    return np.polyfit(np.log(radii), np.log(profile), 1)[0]


def test_natural_images_have_a_power_spectrum_of_slope_minus_two():
    # Exactly −2 before clipping: cutting 8 % of the values adds a little power at all frequencies, most visibly at high
    # ones, and whole-number rings sample 1/f² coarsely near the centre. Both together measure 0.05.
    assert spectral_slope(images()) == pytest.approx(-2.0, abs=0.1)


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
    normalized = np.concatenate(list(natural_images(2, Preprocessing(16), 1)))
    assert normalized.shape == (2, 3, 16, 16)
    assert normalized.dtype == np.float32
    # float32 rounds each side to 6e-8 of values up to 3
    np.testing.assert_allclose(normalized, (images(2, 16) - mean) / std, atol=1e-6)


def test_noise_is_standard_normal_float32_of_the_shape():
    expected = np.random.default_rng(3).standard_normal((2, 1, 3, 64, 64), np.float32)
    found = list(noise(2, (1, 3, 64, 64), seed=3))
    assert all(image.dtype == np.float32 for image in found)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "samples",
    [
        lambda count, **seed: noise(count, (1, 3, 8, 8), **seed),
        lambda count, **seed: natural_images(count, plain(8), **seed),
    ],
    ids=["noise", "natural images"],
)
def test_a_seed_means_the_same_samples_and_more_only_add(samples):
    few, many, other = (np.stack(list(samples(count, seed=seed))) for count, seed in ((3, 0), (5, 0), (3, 8)))
    np.testing.assert_array_equal(few, many[:3])
    np.testing.assert_array_equal(few, list(samples(3)))  # seed 0 is the default
    assert not np.any(np.all(few == other, axis=(1, 2, 3, 4)))
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(many, 2))
    assert list(samples(0)) == []

"""Seeded inputs for a comparison where no images are at hand: white noise, and images with the spectrum of nature.

White noise drives a network unlike anything it was trained on. Natural scenes have an amplitude spectrum of about 1/f
in radial spatial frequency f, that is, a power spectrum of slope −2 (Field 1987, "Relations between the statistics of
natural images and the response properties of cortical cells"; Ruderman 1994, "The statistics of natural images").
Images with that spectrum and random phases hold low and high frequencies in natural proportion, and need no data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from densenet_deploy.manifest import IMAGENET_MEAN, Preprocessing

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Principal components of ImageNet's RGB values in 0..1 (the colour augmentation of Krizhevsky 2012, section 4.1; the
# numbers of fb.resnet.torch): the variance along each, and the components as columns.
_RGB_VARIANCES: Final = np.array([0.2175, 0.0188, 0.0045])
_RGB_COMPONENTS: Final = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def noise(count: int, shape: tuple[int, ...], seed: int = 0) -> Iterator[Floats]:
    """Yield `count` float32 arrays of `shape`, (1, 3, S, S) for an image, of independent standard normal values.

    The same seed gives the same arrays, and a larger `count` only adds to them.
    """
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape, np.float32) for _ in range(count))


def natural_images(count: int, preprocessing: Preprocessing, seed: int = 0) -> Iterator[Floats]:
    """Yield `count` float32 inputs (1, C, H, W): images with a 1/f amplitude spectrum, normalized for the model.

    Planes with that spectrum, random phases and unit variance are mixed to the colour covariance of ImageNet; its mean
    is added, the result clipped to 0..1, then normalized: (value − mean) / std of `preprocessing`. With any other
    number of channels than three, each is a gray image of its own. The same seed gives the same images, and a larger
    `count` only adds to them.
    """
    rng = np.random.default_rng(seed)
    return (_normalized(_image(preprocessing.shape, rng), preprocessing) for _ in range(count))


def _normalized(image: Doubles, preprocessing: Preprocessing) -> Floats:
    normalized = (image - _per_channel(preprocessing.mean)) / _per_channel(preprocessing.std)
    return normalized.astype(np.float32)[None]


def _image(shape: tuple[int, int, int], rng: np.random.Generator) -> Doubles:
    """Return values in 0..1, (C, H, W)."""
    channels, height, width = shape
    planes = np.stack([_plane(max(2, height), max(2, width), rng) for _ in range(channels)])
    mixing = _RGB_COMPONENTS * np.sqrt(_RGB_VARIANCES)
    if channels == len(IMAGENET_MEAN):
        values = np.tensordot(mixing, planes, axes=1) + _per_channel(IMAGENET_MEAN)
    else:
        values = planes * np.linalg.norm(mixing.mean(axis=0)) + np.mean(IMAGENET_MEAN)
    return np.clip(values, 0.0, 1.0)[:, :height, :width]


def _plane(height: int, width: int, rng: np.random.Generator) -> Doubles:
    """Return (height, width) values of mean 0 and variance 1: amplitude 1/f, phases those of white noise.

    One pixel has no spectrum, so that both sides are at least 2.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = np.reciprocal(frequency, out=np.zeros_like(frequency), where=frequency > 0)
    phase = np.angle(np.fft.rfft2(rng.standard_normal((height, width))))
    plane = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(height, width))
    return np.asarray(plane / plane.std())


def _per_channel(values: tuple[float, ...]) -> Doubles:
    return np.array(values, np.float64)[:, None, None]

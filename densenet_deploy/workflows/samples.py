"""The inputs a comparison runs on: images of the user's, or seeded noise and images with the spectrum of nature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images, noise
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare


def seeded_samples(count: int, preprocessing: Preprocessing, seed: int = 0) -> Iterator[Array]:
    """Yield `count` inputs (1, 3, S, S) float32: every other one white noise, the rest natural images."""
    size = preprocessing.image_size
    white = noise((count + 1) // 2, (1, 3, size, size), seed)
    natural = natural_images(count // 2, size, preprocessing, seed)
    pairs = itertools.zip_longest(white, natural)
    return (sample for pair in pairs for sample in pair if sample is not None)


def image_samples(folder: Path, count: int, preprocessing: Preprocessing) -> Iterator[Array]:
    """Yield `count` images of `folder` (or all it has), evenly spread over it, as inputs (1, 3, S, S) float32.

    Raises:
        DataError: if the folder holds no images.
        ImageError: if one cannot be decoded.
    """
    paths = find_images(folder)
    if not paths:
        raise DataError(folder, "holds no images", "give a folder of JPEG or PNG files")
    count = min(count, len(paths))
    spread = (paths[index * len(paths) // count] for index in range(count))
    return (prepare(load_image(path), preprocessing)[None] for path in spread)

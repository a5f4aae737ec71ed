"""The inputs that a comparison runs on: the user's images, or seeded noise and images with the spectrum of nature."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.parity.samples import natural_images, noise
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.image_folders import find_images
from densenet_deploy.runtime.preprocess import nearest_pixels, read_input


def samples_of(data: Any, preprocessing: Preprocessing, count: int, *, check_values: bool = True) -> Iterator[Array]:
    """Yield at most `count` inputs of a model from `data`; of None, seeded ones.

    They are float32 (1, C, H, W), or, if `preprocessing` says that the model takes pixels, uint8 (1, H, W, C): the
    nearest to values that are not pixels.

    A folder gives images evenly spread over it; everything else what calibration takes (`open_calibration_data`, which
    also says what `check_values` does).

    Raises:
        DataError: if `data` holds no images, or arrays that do not fit.
        ImageError: if an image cannot be decoded.
    """
    if data is None:
        return seeded_samples(count, preprocessing)
    if isinstance(data, (str, os.PathLike)) and Path(data).suffix.lower() not in (".npy", ".npz"):
        return image_samples(find_images(data), preprocessing, count)
    from densenet_deploy.quantization.calibration_data import open_calibration_data

    plain = dataclasses.replace(preprocessing, dtype="float32")
    return taken(
        itertools.islice(open_calibration_data(data, plain, count, check_values=check_values), count), preprocessing
    )


def taken(samples: Iterable[Array], preprocessing: Preprocessing) -> Iterator[Array]:
    """Yield normalized samples as the model takes them."""
    return (nearest_pixels(sample, preprocessing) if preprocessing.takes_pixels else sample for sample in samples)


def seeded_samples(count: int, preprocessing: Preprocessing, seed: int = 0) -> Iterator[Array]:
    """Yield `count` inputs as `samples_of` does: white noise and natural images in turn."""
    white = noise((count + 1) // 2, (1, *preprocessing.shape), seed)
    natural = natural_images(count // 2, preprocessing, seed)
    pairs = itertools.zip_longest(white, natural)
    return taken((sample for pair in pairs for sample in pair if sample is not None), preprocessing)


def image_samples(paths: Sequence[Path], preprocessing: Preprocessing, count: int) -> Iterator[Array]:
    """Yield at most `count` inputs as `samples_of` does from image files, evenly spread over them.

    Raises:
        ImageError: if an image cannot be decoded.
    """
    count = min(count, len(paths))
    spread = (paths[index * len(paths) // count] for index in range(count))
    return (read_input(path, preprocessing).pixels[None] for path in spread)

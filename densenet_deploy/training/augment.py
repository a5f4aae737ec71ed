"""Images as a network in training sees them: shifted, cropped and mirrored at random, then normalized.

Every draw comes from the generator that the caller gives, so that an image looks the same whichever thread, process or
resumed run prepares it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from densenet_deploy.manifest import NO_RESIZE, Preprocessing, sides
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import cropped, prepare

_MARGIN: Final = 8
"""An image is shifted by up to one in so many of its pixels: 4 of 32, as the paper does."""

_AREA: Final = (0.08, 1.0)
_RATIO: Final = (3 / 4, 4 / 3)
_ATTEMPTS: Final = 10


def augmented(
    image: LoadedImage, preprocessing: Preprocessing, kind: str, generator: np.random.Generator, *, flip: bool
) -> npt.NDArray[np.float32]:
    """Return the image as the model takes it, float32 (C, H, W).

    Args:
        image: any size, in the model's channels.
        preprocessing: size, interpolation and normalization.
        kind: `none`: as for inference; `crop`: that, shifted at random with black outside; `resized-crop`: a random
            part of 8 to 100 % of the area and proportions of 3:4 to 4:3, resized (Szegedy et al. 2015, and
            torchvision's RandomResizedCrop).
        generator: of the draws.
        flip: mirror it with a probability of one half.
    """
    size = sides(preprocessing.image_size)
    if kind == "resized-crop":
        part = _random_part(image, generator)
        seen = cropped(part, dataclasses.replace(preprocessing, resize=size))
    else:
        seen = cropped(image, preprocessing)
        if kind == "crop":
            seen = _shifted(seen, generator)
    if flip and generator.random() < 0.5:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    whole = dataclasses.replace(preprocessing, resize=NO_RESIZE)
    return np.asarray(prepare(LoadedImage(seen), whole), np.float32)


def _shifted(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut an image of the same size out of `image` with a black margin around it."""
    (width, height) = image.size
    margins = width // _MARGIN, height // _MARGIN
    left, top = (int(generator.integers(-margin, margin, endpoint=True)) for margin in margins)
    return image.crop((left, top, left + width, top + height))


def _random_part(image: LoadedImage, generator: np.random.Generator) -> LoadedImage:
    """Return a random part of `image`; after ten draws that do not fit, the largest central one that does."""
    width, height = image.size
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*_AREA)
        ratio = math.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(generator.integers(0, width - wide, endpoint=True))
            top = int(generator.integers(0, height - high, endpoint=True))
            return _part(image, left, top, wide, high)
    wide = min(width, max(1, round(height * _RATIO[1])))
    high = min(height, max(1, round(width / _RATIO[0])))
    return _part(image, (width - wide) // 2, (height - high) // 2, wide, high)


def _part(image: LoadedImage, left: int, top: int, width: int, height: int) -> LoadedImage:
    return LoadedImage(image.pixels.crop((left, top, left + width, top + height)))

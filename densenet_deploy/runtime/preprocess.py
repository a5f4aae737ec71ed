"""Turn an image into the input of a model, exactly as torchvision does in training.

The result equals `Resize(resize) → CenterCrop(image_size) → ToTensor → Normalize` of torchvision's PIL path bit for
bit, including its rounding: `Resize` truncates the longer side to an integer, `CenterCrop` rounds its corner half to
even and pads an image smaller than the crop with black (which is then normalized too). With four channels, each is
resized by itself: Pillow would weight the colors by the fourth, which is opacity in photographs only.

An image of 1x10000 pixels would be enlarged to 655 million before the crop. Above `LARGEST_RESIZED` pixels only the
crop is computed; each of the two passes (horizontal, vertical) may then round one of 255 levels differently, and
`nearest` take the other of two pixels that are equally near.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from densenet_deploy.errors import FeedError
from densenet_deploy.manifest import Preprocessing, Size
from densenet_deploy.options import require_choice
from densenet_deploy.runtime.images import LoadedImage

Pixels = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_WIDEST_FILTER: Final = 2  # source pixels each way, of bicubic without shrinking
LARGEST_RESIZED: Final = 2**26


def prepare(image: LoadedImage, preprocessing: Preprocessing, out: Pixels | None = None) -> Pixels:
    """Return the image as the model takes it: float32, (C, H, W), which is `preprocessing.shape`.

    >>> prepare(load_image("cat.jpg"), Preprocessing()).shape      # doctest: +SKIP
    (3, 224, 224)

    Args:
        image: any size of at least 1x1, with as many channels as the model takes.
        preprocessing: how to resize, crop and normalize.
        out: an array to write into and return; a new one by default.

    Raises:
        UnknownNameError: if the interpolation is not nearest, bilinear or bicubic.
        FeedError: if the image has other channels, or `out` is not float32 of that shape.
    """
    result = _buffer(preprocessing.shape, out)
    if image.channels != len(result):
        wanted = len(result)
        fix = f"load it with load_image(path, channels={wanted}), or give an array (H, W, {wanted})"
        raise FeedError("image", f"has {image.channels} channels, the model takes {wanted}", fix)
    pixels = np.atleast_3d(np.asarray(cropped(image.pixels, preprocessing))).transpose(2, 0, 1)
    np.divide(pixels, np.float32(255), out=result)
    np.subtract(result, _per_channel(preprocessing.mean), out=result)
    np.divide(result, _per_channel(preprocessing.std), out=result)
    return result


def prepare_batch(images: Sequence[LoadedImage], preprocessing: Preprocessing, out: Pixels | None = None) -> Pixels:
    """Return the images as one batch: float32, (N, C, H, W). Arguments and errors as in `prepare`."""
    batch = _buffer((len(images), *preprocessing.shape), out)
    for image, place in zip(images, batch, strict=True):
        prepare(image, preprocessing, place)
    return batch


def cropped(image: Image.Image, preprocessing: Preprocessing, largest_resized: int = LARGEST_RESIZED) -> Image.Image:
    """Resize, then cut the center; what lies outside the image is black.

    Args:
        image: in a mode of `LoadedImage.pixels`.
        preprocessing: sizes and interpolation.
        largest_resized: above this many pixels of the resized image, only those of the crop are computed.

    Raises:
        UnknownNameError: if the interpolation is not nearest, bilinear or bicubic.
    """
    require_choice("interpolation", preprocessing.interpolation, _FILTERS)
    if image.mode == "RGBA":
        bands = [cropped(band, preprocessing, largest_resized) for band in image.split()]
        return Image.merge("RGBA", bands)
    (_, rows, columns), resample = preprocessing.shape, _FILTERS[preprocessing.interpolation]
    width, height = _resized_size(image.size, preprocessing.resize)
    left, top = _crop_start(width, columns), _crop_start(height, rows)
    if width * height <= largest_resized:
        return image.resize((width, height), resample).crop((left, top, left + columns, top + rows))
    seen = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    part = _resized_part(image, (width, height), seen, resample)
    return part.crop((min(left, 0), min(top, 0), min(left, 0) + columns, min(top, 0) + rows))


def _buffer(shape: tuple[int, ...], out: Pixels | None) -> Pixels:
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32:
        raise FeedError("out", f"is {out.shape} {out.dtype}", f"give a float32 array of {shape}")
    return out


def _per_channel(values: tuple[float, ...]) -> npt.NDArray[Any]:
    return np.array(values, np.float32)[:, None, None]


def _resized_size(size: tuple[int, int], resize: Size | str) -> tuple[int, int]:
    """Return (width, height) after resizing: one number is for the shorter side, as in torchvision's Resize."""
    if isinstance(resize, str):
        return size
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = (int(resize * side / min(size)) for side in size)
    return width, height


def _crop_start(length: int, size: int) -> int:
    """Return the start of a center crop of `size` on a side of `length`, as in torchvision's CenterCrop."""
    if length < size:
        return -((size - length) // 2)
    return round((length - size) / 2)


def _resized_part(image: Image.Image, size: tuple[int, int], part: Box, resample: Image.Resampling) -> Image.Image:
    """Return `part` of `image` resized to `size`, computed only from the pixels that it shows.

    The pixels are cut out first: Pillow stores the corners of a `box` as float32, too coarse far from the origin.
    """
    scales = [old / new for old, new in zip(image.size, size, strict=True)] * 2
    box = [corner * scale for corner, scale in zip(part, scales, strict=True)]
    margins = [math.ceil(_WIDEST_FILTER * max(scale, 1)) + 1 for scale in scales]
    left, top = (max(0, math.floor(box[i]) - margins[i]) for i in range(2))
    right, bottom = (min(image.size[i], math.ceil(box[i + 2]) + margins[i]) for i in range(2))
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return image.crop((left, top, right, bottom)).resize((part[2] - part[0], part[3] - part[1]), resample, inner)

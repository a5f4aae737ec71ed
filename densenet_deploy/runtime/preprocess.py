"""Turn an image into the input of a model, exactly as torchvision does in training.

The result equals `Resize(resize) → CenterCrop(image_size) → ToTensor → Normalize` of torchvision's PIL path bit for
bit, including its rounding: `Resize` truncates the longer side to an integer, `CenterCrop` rounds its corner half to
even and pads an image smaller than the crop with black (which is then normalized too). With four channels, each is
resized by itself: Pillow would weight the colors by the fourth, which is opacity in photographs only.

In fast mode a JPEG is decoded at a reduced scale that leaves at least twice the pixels of the resized image each way,
and images far larger than that are averaged over whole blocks before they are resized. Sizes and crop are the same; the
pixels are not (see docs/how-to/runner.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from densenet_deploy.errors import FeedError
from densenet_deploy.manifest import Preprocessing, Size
from densenet_deploy.options import require_choice
from densenet_deploy.runtime.images import ImageSource, LoadedImage, SideLengths, load_image
from densenet_deploy.runtime.resize import LARGEST_RESIZED, REDUCING_GAP, resized_part

Inputs = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""Normalized values (C, H, W), or pixels (H, W, C)."""

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class PreparedImage:
    """An input of a model, an array of `preprocessing.input_shape`, and what was lost in reading its image."""

    pixels: Inputs
    notes: tuple[str, ...] = ()


def read_input(
    source: ImageSource,
    preprocessing: Preprocessing,
    out: Inputs | None = None,
    *,
    fast: bool = False,
    threads: int = 1,
) -> PreparedImage:
    """Return an image file, or another source of an image, as the model takes it.

    >>> read_input("cat.jpg", Preprocessing(), fast=True).pixels.shape      # doctest: +SKIP
    (3, 224, 224)

    Args:
        source: see `load_image`.
        preprocessing: how to resize, crop and normalize.
        out: an array to write into; a new one by default.
        fast: decode JPEGs at a reduced scale and resize from averages of blocks; not exact.
        threads: the most that resize a large image at the same time.

    Raises:
        DensenetDeployError: as `load_image` and `prepare`.
    """
    may_reduce = fast and preprocessing.interpolation != "nearest"  # which shows single pixels
    needed = functools.partial(_needed_size, preprocessing) if may_reduce else None
    image = load_image(source, preprocessing.shape[0], needed=needed)
    is_rounded = preprocessing.takes_pixels and image.is_float
    notes = (*image.notes, *(("values are rounded to 8 bits",) if is_rounded else ()))
    return PreparedImage(prepare(image, preprocessing, out, fast=may_reduce, threads=threads), notes)


def prepare(
    image: LoadedImage,
    preprocessing: Preprocessing,
    out: Inputs | None = None,
    *,
    fast: bool = False,
    threads: int = 1,
) -> Inputs:
    """Return the image as the model takes it: float32 (C, H, W), or uint8 (H, W, C), if its graph normalizes.

    >>> prepare(load_image("cat.jpg"), Preprocessing()).shape      # doctest: +SKIP
    (3, 224, 224)

    Args:
        image: any size of at least 1x1, with as many channels as the model takes.
        preprocessing: how to resize, crop and normalize.
        out: an array to write into and return; a new one by default.
        fast: resize from averages of blocks; not exact.
        threads: the most that resize a large image at the same time, to the same bits.

    Raises:
        UnknownNameError: if the interpolation is not nearest, bilinear or bicubic.
        FeedError: if the image has other channels, or `out` is of another shape or type.
    """
    result, wanted = _buffer(preprocessing.input_shape, preprocessing, out), len(preprocessing.mean)
    if image.channels != wanted:
        fix = f"load it with load_image(path, channels={wanted}), or give an array (H, W, {wanted})"
        raise FeedError("image", f"has {image.channels} channels, the model takes {wanted}", fix)
    pixels = np.atleast_3d(np.asarray(cropped(image, preprocessing, fast=fast, threads=threads)))
    if preprocessing.takes_pixels:
        np.copyto(result, np.rint(pixels), casting="unsafe")
        return result
    return _normalize(pixels.transpose(2, 0, 1), preprocessing, result)


def prepare_batch(
    images: Sequence[LoadedImage], preprocessing: Preprocessing, out: Inputs | None = None, *, fast: bool = False
) -> Inputs:
    """Return the images as one batch, (N, …). Arguments and errors as in `prepare`."""
    batch = _buffer((len(images), *preprocessing.input_shape), preprocessing, out)
    for image, place in zip(images, batch, strict=True):
        prepare(image, preprocessing, place, fast=fast)
    return batch


def cropped(
    image: LoadedImage,
    preprocessing: Preprocessing,
    *,
    fast: bool = False,
    largest_resized: int = LARGEST_RESIZED,
    threads: int = 1,
) -> Image.Image:
    """Resize, then cut the center; what lies outside the image is black.

    Args:
        image: of any size.
        preprocessing: sizes and interpolation.
        fast: see `resized_part`.
        largest_resized: likewise.
        threads: likewise.

    Raises:
        UnknownNameError: if the interpolation is not nearest, bilinear or bicubic.
    """
    require_choice("interpolation", preprocessing.interpolation, _FILTERS)
    options: dict[str, Any] = {"fast": fast, "largest_resized": largest_resized, "threads": threads}
    if image.channels == len("RGBA"):
        bands = (LoadedImage(band, full_size=image.full_size) for band in image.pixels.split())
        parts = [cropped(band, preprocessing, **options) for band in bands]
        return Image.merge("RGBA", parts)
    (_, rows, columns), resample = preprocessing.shape, _FILTERS[preprocessing.interpolation]
    width, height = resized_size(image.full_size or image.size, preprocessing.resize)
    left, top = _crop_start(width, columns), _crop_start(height, rows)
    seen = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    part = resized_part(image, (width, height), seen, resample, **options)
    if part.size == (columns, rows):
        return part
    return part.crop((min(left, 0), min(top, 0), min(left, 0) + columns, min(top, 0) + rows))


def normalized(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Return pixels (N, H, W, C) as normalized values (N, C, H, W), to the bits of `prepare`."""
    batch, height, width, channels = pixels.shape
    result = np.empty((batch, channels, height, width), np.float32)
    return _normalize(pixels.transpose(0, 3, 1, 2), preprocessing, result)


def nearest_pixels(inputs: npt.NDArray[np.float32], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return the pixels (N, H, W, C) nearest to normalized values (N, C, H, W): those they were made from, if any.

    Values that no pixel has, such as noise beyond black and white, become black or white.
    """
    values = inputs * _per_channel(preprocessing.std) + _per_channel(preprocessing.mean)
    levels = np.clip(np.rint(values * np.float32(255)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def _normalize(
    pixels: npt.NDArray[Any], preprocessing: Preprocessing, out: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Write pixels (…, C, H, W) into `out` as torchvision normalizes them: three roundings, each of float32."""
    np.divide(pixels, np.float32(255), out=out)
    np.subtract(out, _per_channel(preprocessing.mean), out=out)
    np.divide(out, _per_channel(preprocessing.std), out=out)
    return out


def _buffer(shape: tuple[int, ...], preprocessing: Preprocessing, out: Inputs | None) -> Inputs:
    if out is None:
        return np.empty(shape, preprocessing.dtype)
    if out.shape != shape or out.dtype != preprocessing.dtype:
        raise FeedError("out", f"is {out.shape} {out.dtype}", f"give a {preprocessing.dtype} array of {shape}")
    return out


def _per_channel(values: tuple[float, ...]) -> npt.NDArray[Any]:
    return np.array(values, np.float32)[:, None, None]


def _needed_size(preprocessing: Preprocessing, size: SideLengths) -> SideLengths:
    """Return the least width and height at which an image of `size` may be decoded in fast mode."""
    width, height = resized_size(size, preprocessing.resize)
    return math.ceil(REDUCING_GAP * width), math.ceil(REDUCING_GAP * height)


def resized_size(size: SideLengths, resize: Size | str) -> SideLengths:
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

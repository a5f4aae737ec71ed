"""Resize only what the center crop keeps, to the same bits as if the whole image had been resized.

Pillow resizes in two passes, first along rows. For output pixel k of a side that is scaled by s, its center in the
image is (k + ½)·s, and the pixels around it are added with weights of 22 bits. `Image.resize(box=…)` computes only a
part, with the same weights if the corners of the box are exact: Pillow keeps them as float32. With s = p/q in lowest
terms, corner k·p/q has a finite binary fraction where the odd part of q divides k, so the part is widened to the next
such corners: for 1920 pixels resized to 455, where q is 91, columns 91 to 364 hold those of the crop, 115 to 339. Where
no such corner exists, the whole side is computed.

What then may differ is the last bit of a center in float64, 10⁻¹³ of a pixel. A weight changes only if it lies that
close to where it is rounded; a part in which one does is computed as a whole, too. `nearest` adds up positions from the
first pixel, and images of fractions keep float weights: these are always resized as a whole. So are images of which the
height loses more than twice as many pixels as the width, where Pillow 13 passes along columns first.

With several threads, each pass of a large image is computed in bands: of rows along rows, of columns along columns.

Above `LARGEST_RESIZED` pixels of the resized image the whole would be too large, as 1x10000 pixels become 655 million
before the crop; then any part is computed, and each of the two passes may round one of 255 levels differently.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from densenet_deploy.runtime.images import LoadedImage, SideLengths

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

Area = tuple[float, float, float, float]
"""The same with fractions of pixels."""

LARGEST_RESIZED: Final = 2**26
REDUCING_GAP: Final = 2.0
"""In fast mode, an image is averaged over whole blocks down to this multiple of the resized size, then resized."""

_LEAST_OF_A_BAND: Final = 2**18
"""Pixels of the image for which another thread is worth its start, which takes as long as some 20 000."""
_WIDEST: Final = 2  # pixels of the smaller grid each way, of bicubic
_WEIGHT_BITS: Final = 22
_SLACK: Final = 4  # roundings of a center in float64, each half a last bit, and the steepest filter, 1.5


def resized_part(
    image: LoadedImage,
    size: SideLengths,
    part: Box,
    resample: Image.Resampling,
    *,
    fast: bool = False,
    largest_resized: int = LARGEST_RESIZED,
    threads: int = 1,
) -> Image.Image:
    """Return `part` of `image` resized to `size`.

    Args:
        image: in one of the modes L, F and RGB.
        size: width and height of the whole resized image.
        part: of the resized image, inside of it.
        resample: nearest, bilinear or bicubic.
        fast: average whole blocks first where the image is at least twice `REDUCING_GAP` times as large; not exact.
        largest_resized: above this many pixels of the resized image only those of `part` are computed, not exactly.
        threads: the most that resize a large image at the same time, to the same bits.
    """
    if size == image.size:
        return _window(image, part)
    if fast or image.full_size is not None or size[0] * size[1] > largest_resized:
        return _inexact(image, size, part, resample, REDUCING_GAP if fast else None)
    lost = [old - new for old, new in zip(image.size, size, strict=True)]
    if resample == Image.Resampling.NEAREST or image.is_float or lost[1] > 2 * lost[0]:
        return image.pixels.resize(size, resample).crop(part)
    spans = [_exact_span(image.size[i], size[i], part[i], part[i + 2], resample) for i in range(2)]
    (left, right), (top, bottom) = spans
    wide = _exact(image, size, (left, top, right, bottom), resample, threads)
    return wide.crop((part[0] - left, part[1] - top, part[2] - left, part[3] - top))


def _exact(image: LoadedImage, size: SideLengths, part: Box, resample: Image.Resampling, threads: int) -> Image.Image:
    """Resize `part`, whose corners are exact, along rows and then along columns.

    The pixels that it shows are cut out first where that costs less than what it saves: of a frame, which has to be
    converted, and where many rows are not needed.
    """
    box, outer = _source_box(image, size, part), (0, 0, *image.size)
    inner = _with_margins(image, size, box)
    if not isinstance(image.stored, Image.Image) or 3 * (inner[3] - inner[1]) < 2 * image.size[1]:
        outer = inner
    first, last = outer[1], outer[3]
    left, top, right, bottom = _from_corner(box, outer)
    width, height = part[2] - part[0], part[3] - part[1]

    def along_rows(start: int, end: int) -> Image.Image:
        band = outer[0], first + start, outer[2], first + end
        window = image.pixels if band == (0, 0, *image.size) else _window(image, band)
        return window.resize((width, end - start), resample, (left, 0, right, end - start))

    bands = max(1, min(threads, (outer[2] - outer[0]) * (last - first) // _LEAST_OF_A_BAND))
    if bands == 1:
        return along_rows(0, last - first).resize((width, height), resample, (0, top, width, bottom))
    with ThreadPoolExecutor(bands) as pool:
        narrow = _joined(pool, along_rows, last - first, bands, axis=1)

        def along_columns(start: int, end: int) -> Image.Image:
            return narrow.resize((end - start, height), resample, (start, top, end, bottom))

        return _joined(pool, along_columns, width, bands, axis=0)


def _joined(
    pool: Executor, resized: Callable[[int, int], Image.Image], length: int, bands: int, axis: int
) -> Image.Image:
    """Return an image of which `resized` gives the bands between two places on a side of `length`, side by side."""
    ends = [length * band // bands for band in range(bands + 1)]
    parts = list(pool.map(resized, ends[:-1], ends[1:]))
    across = parts[0].size[1 - axis]
    whole = Image.new(parts[0].mode, (across, length) if axis else (length, across))
    for start, part in zip(ends, parts, strict=False):
        whole.paste(part, (0, start) if axis else (start, 0))
    return whole


def _inexact(
    image: LoadedImage, size: SideLengths, part: Box, resample: Image.Resampling, gap: float | None
) -> Image.Image:
    """Resize `part`, whose corners Pillow rounds to float32: too coarse far from the origin, so it is cut out first."""
    box = _source_box(image, size, part)
    outer = _with_margins(image, size, box)
    size_of_part = (part[2] - part[0], part[3] - part[1])
    return _window(image, outer).resize(size_of_part, resample, _from_corner(box, outer), gap)


def _source_box(image: LoadedImage, size: SideLengths, part: Box) -> Area:
    """Return the pixels of `image` that become `part`."""
    (width, height), (new_width, new_height), (left, top, right, bottom) = image.size, size, part
    return left * width / new_width, top * height / new_height, right * width / new_width, bottom * height / new_height


def _from_corner(box: Area, outer: Box) -> Area:
    """Return `box` as it lies in `outer`."""
    left, top = outer[:2]
    return box[0] - left, box[1] - top, box[2] - left, box[3] - top


def _with_margins(image: LoadedImage, size: SideLengths, box: Area) -> Box:
    """Return `box` with all pixels around it that have a weight in it."""
    margins = [math.ceil(_WIDEST * max(old / new, 1)) + 1 for old, new in zip(image.size, size, strict=True)]
    left, top = (max(0, math.floor(box[i]) - margins[i]) for i in range(2))
    right, bottom = (min(image.size[i], math.ceil(box[i + 2]) + margins[i]) for i in range(2))
    return left, top, right, bottom


def _window(image: LoadedImage, box: Box) -> Image.Image:
    """Return the pixels of `image` in `box`, which lies inside of it."""
    if isinstance(image.stored, Image.Image):
        return image.stored.crop(box)
    left, top, right, bottom = box
    frame, row = image.stored, 3 * image.size[0]
    if not frame.flags.c_contiguous:
        return Image.fromarray(frame[top:bottom, left:right])
    pixels = frame.reshape(-1)[top * row + 3 * left : (bottom - 1) * row + 3 * right]  # converted without a copy first
    return Image.frombuffer("RGB", (right - left, bottom - top), pixels, "raw", "RGB", row, 1)


@functools.lru_cache(maxsize=256)  # an application resizes images of few sizes
def _exact_span(old: int, new: int, first: int, last: int, resample: Image.Resampling) -> tuple[int, int]:
    """Return the first and the end of the least outputs that hold `first` to `last` and keep their bits.

    Args:
        old: pixels of the image on this side.
        new: pixels after resizing.
        first: of the outputs that are needed.
        last: their end.
        resample: bilinear or bicubic.
    """
    step = new // math.gcd(old, new)
    step //= step & -step  # the odd part
    start, end = first // step * step, min(new, -(-last // step) * step)
    ends = start * old / new, end * old / new
    is_exact = all(float(np.float32(corner)) == corner for corner in (*ends, ends[1] - ends[0]))
    return (start, end) if is_exact and _weights_are_stable(old, new, start, end, resample) else (0, new)


def _weights_are_stable(old: int, new: int, start: int, end: int, resample: Image.Resampling) -> bool:
    """Whether no weight of the outputs `start` to `end` is so near to where it is rounded that a last bit decides."""
    scale = old / new
    stretch = max(scale, 1.0)
    centers = (np.arange(start, end) + 0.5) * scale
    radius = stretch if resample == Image.Resampling.BILINEAR else 2 * stretch
    taps = np.arange(math.ceil(2 * radius) + 1)
    places = (np.floor(centers - radius + 0.5)[:, None] + taps).clip(-1, old)
    is_inside = (places >= 0) & (places < old)
    weights = _filter(np.abs(places + 0.5 - centers[:, None]) / stretch, resample) * is_inside
    steps = weights / weights.sum(axis=1, keepdims=True) * 2**_WEIGHT_BITS
    margin = 2**_WEIGHT_BITS * _SLACK * np.spacing(np.float64(old)) / stretch**2
    return bool((np.abs(steps - np.floor(steps) - 0.5) > margin).all())


def _filter(x: npt.NDArray[np.float64], resample: Image.Resampling) -> npt.NDArray[np.float64]:
    """Return the weight at distance `x`, not negative: of bilinear, or of Pillow's bicubic with a = −½."""
    if resample == Image.Resampling.BILINEAR:
        return np.clip(1 - x, 0, None)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))

"""Digits as masks, in several hands: typeset, hollow, pixelated, in seven segments, and scanned handwriting.

All of it comes from what Pillow and scikit-learn carry inside, so no font of the machine decides what an image shows.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from examples.digits_data import Digits, digits_split

CANVAS: Final = 96
"""Side of a mask, in pixels. The digit stands in its middle, `HEIGHT` pixels high."""
HEIGHT: Final = 64

SPLITS: Final = ("training", "calibration", "held_out")
HANDS: Final = ("thin", "regular", "bold", "hollow", "pixelated", "segments", "handwriting")

CALIBRATION_SCANS: Final = 240
"""Of the training scans of `digits_split`, those that calibration images show and training images do not."""

_STROKES: Final = {"thin": 0, "regular": 2, "bold": 5}
_HOLLOW_STROKE: Final = 4

# The lit segments of each digit: top, upper right, lower right, bottom, lower left, upper left, middle.
_SEGMENTS: Final = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
_LEFT, _RIGHT, _TOP, _MIDDLE, _BOTTOM = 30, 66, 16, 48, 80
_SEGMENT_ENDS: Final = {
    "a": (_LEFT, _TOP, _RIGHT, _TOP),
    "b": (_RIGHT, _TOP, _RIGHT, _MIDDLE),
    "c": (_RIGHT, _MIDDLE, _RIGHT, _BOTTOM),
    "d": (_LEFT, _BOTTOM, _RIGHT, _BOTTOM),
    "e": (_LEFT, _MIDDLE, _LEFT, _BOTTOM),
    "f": (_LEFT, _TOP, _LEFT, _MIDDLE),
    "g": (_LEFT, _MIDDLE, _RIGHT, _MIDDLE),
}


def glyph(hand: str, digit: int, split: str, rng: np.random.Generator) -> Image.Image:
    """Return `digit` in one of `HANDS` as a mask (mode L, `CANVAS` square); `rng` picks one of `split`'s scans."""
    if hand == "handwriting":
        choices = scans_of(split, digit)
        return _scanned(split, digit, int(rng.integers(len(choices))))
    return _printed(hand, digit)


@cache
def scans_of(split: str, digit: int) -> tuple[bytes, ...]:
    """Return the scans of `digit` that belong to `split`, each 32x32 grey bytes; no scan belongs to two splits."""
    data = _scans(split)
    return tuple(image.tobytes() for image in data.images[data.digits == digit])


@cache
def _scans(split: str) -> Digits:
    training, held_out = digits_split()
    if split == "held_out":
        return held_out
    part = slice(CALIBRATION_SCANS) if split == "calibration" else slice(CALIBRATION_SCANS, None)
    return Digits(training.images[part], training.digits[part])


@cache
def _scanned(split: str, digit: int, index: int) -> Image.Image:
    """Return a scan enlarged, its pencil's grey edge steepened so that strokes stay strokes."""
    small = Image.frombytes("L", (32, 32), scans_of(split, digit)[index])
    large = np.asarray(small.resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    steep = np.clip(large * 2 - 100, 0, 255).astype(np.uint8)
    mask = Image.new("L", (CANVAS, CANVAS))
    mask.paste(Image.fromarray(steep), ((CANVAS - HEIGHT) // 2,) * 2)
    return mask


@cache
def _printed(hand: str, digit: int) -> Image.Image:
    if hand == "segments":
        return _segments(digit)
    if hand == "pixelated":
        return _pixelated(digit)
    if hand == "hollow":
        return ImageChops.subtract(_typeset(digit, _HOLLOW_STROKE), _typeset(digit, 0))
    return _typeset(digit, _STROKES[hand])


def _typeset(digit: int, stroke: int) -> Image.Image:
    """Return the digit in Pillow's outline font, its strokes widened by `stroke` pixels on either side."""
    mask = Image.new("L", (CANVAS, CANVAS))
    font = ImageFont.load_default(size=HEIGHT * 1.3)
    middle = (CANVAS / 2, CANVAS / 2)
    ImageDraw.Draw(mask).text(middle, str(digit), 255, font, anchor="mm", stroke_width=stroke)
    return mask


def _pixelated(digit: int) -> Image.Image:
    """Return the digit in Pillow's bitmap font, a few pixels high, enlarged to blocks."""
    small = Image.new("L", (16, 16))
    ImageDraw.Draw(small).text((2, 2), str(digit), 255, ImageFont.load_default_imagefont())
    drawn = small.crop(small.getbbox())
    mask = Image.new("L", (CANVAS, CANVAS))
    block = HEIGHT // drawn.height
    blocks = drawn.resize((drawn.width * block, drawn.height * block), Image.Resampling.NEAREST)
    mask.paste(blocks, ((CANVAS - blocks.width) // 2, (CANVAS - blocks.height) // 2))
    return mask


def _segments(digit: int) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(mask)
    for name in _SEGMENTS[digit]:
        draw.line(_SEGMENT_ENDS[name], 255, width=7)
    return mask

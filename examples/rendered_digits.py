"""Digits as a camera might meet them: rendered in several hands, tilted, cluttered, faint, blurred and noisy.

An image is a function of a seed, a split and a number, and of nothing else: training draws new numbers every epoch,
and number 7 of the held-out images is always the same one. An image shows the last digit of its number. Splits share
neither images nor scans of handwriting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import prepare_batch
from examples.digits_data import LABELS, Digits, write_images
from examples.glyphs import CANVAS, HANDS, HEIGHT, SPLITS, glyph

IMAGE_SIZE: Final = 64
PREPROCESSING: Final = Preprocessing(image_size=IMAGE_SIZE, resize=IMAGE_SIZE)

_HANDWRITTEN_SHARE: Final = 0.3
_PRINTED: Final = tuple(hand for hand in HANDS if hand != "handwriting")

Colour = tuple[int, int, int]
Draw = Callable[[np.random.Generator], Image.Image]
"""Returns a mask (mode L, `CANVAS` square) of what an image shows, or of a fragment beside it."""


@dataclass(frozen=True)
class Nuisance:
    """What makes a digit hard to read; with the defaults, a well-trained network makes a few errors in a hundred.

    Heights, shifts and radii are in pixels; contrast and noise in grey levels of 255; shares are of all images.
    """

    heights: tuple[float, float] = (28, 48)
    most_degrees: float = 15
    most_shear: float = 0.15
    most_stretch: float = 0.2
    most_shift: float = 6
    contrast: tuple[float, float] = (36, 150)
    most_lines: int = 2
    most_fragments: int = 2
    crossed_share: float = 0.2
    blurred_share: float = 0.5
    most_blur: float = 1.4
    noise: tuple[float, float] = (2, 18)

    def eased(self, share: float) -> Nuisance:
        """Return only `share` (0-1) of this nuisance: at 0 large clear digits upright in the middle, at 1 all of it."""
        return Nuisance(
            heights=(_between(self.heights[1], self.heights[0], share), self.heights[1]),
            most_degrees=self.most_degrees * share,
            most_shear=self.most_shear * share,
            most_stretch=self.most_stretch * share,
            most_shift=self.most_shift * share,
            contrast=(_between(self.contrast[1], self.contrast[0], share), self.contrast[1]),
            most_lines=round(self.most_lines * share),
            most_fragments=round(self.most_fragments * share),
            crossed_share=self.crossed_share * share,
            blurred_share=self.blurred_share * share,
            most_blur=self.most_blur,
            noise=(self.noise[0] * share, self.noise[1] * share),
        )


def images_of(split: str, numbers: Sequence[int], nuisance: Nuisance | None = None, seed: int = 0) -> Digits:
    """Return the images of `split` with these `numbers`: (N, 64, 64, 3) uint8 RGB, and their digits.

    >>> images_of("held_out", range(20, 23)).digits.tolist()
    [0, 1, 2]
    """
    nuisance = nuisance or Nuisance()
    images = np.stack([_image(split, number, nuisance, seed) for number in numbers])
    return Digits(images, np.array(numbers, np.int64) % len(LABELS))


def camera_image(subject: Draw, fragment: Draw, nuisance: Nuisance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image of `subject`, (64, 64, 3) uint8 RGB, with fragments about it and all of `nuisance`."""
    base = rng.integers(20, 236, 3)
    canvas = _background(base, rng)
    _clutter(canvas, base, fragment, nuisance, rng)
    height, shift = rng.uniform(*nuisance.heights), rng.uniform(-nuisance.most_shift, nuisance.most_shift, 2)
    mask = _placed(subject(rng), height, shift, nuisance, rng)
    canvas.paste(_ink(base, rng.uniform(*nuisance.contrast), rng), mask=mask)
    if rng.random() < nuisance.crossed_share:
        _draw_line(canvas, base, rng)
    return _exposed(canvas, nuisance, rng)


def _between(start: float, end: float, share: float) -> float:
    return start + share * (end - start)


def inputs_from(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a runner makes of `images` (N, 64, 64, 3): float32 (N, 3, 64, 64), normalized."""
    return prepare_batch([LoadedImage.from_array(image) for image in images], PREPROCESSING)


def write_split(folder: Path, split: str, count: int, seed: int = 0) -> Digits:
    """Write the first `count` images of `split` as `folder/<digit>/NNNN.png`, and return them."""
    data = images_of(split, range(count), seed=seed)
    write_images(folder, data)
    return data


def _image(split: str, number: int, nuisance: Nuisance, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng((seed, SPLITS.index(split), number))
    digit = number % len(LABELS)
    hand = "handwriting" if rng.random() < _HANDWRITTEN_SHARE else _PRINTED[rng.integers(len(_PRINTED))]
    return camera_image(lambda rng: glyph(hand, digit, split, rng), lambda rng: _fragment(split, rng), nuisance, rng)


def _fragment(split: str, rng: np.random.Generator) -> Image.Image:
    return glyph(HANDS[rng.integers(len(HANDS))], int(rng.integers(len(LABELS))), split, rng)


def _background(base: NDArray[np.int64], rng: np.random.Generator) -> Image.Image:
    """Return a soft gradient about the colour `base`."""
    corners = np.clip(base + rng.integers(-24, 25, (2, 2, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(corners).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)


def _ink(base: NDArray[np.int64], contrast: float, rng: np.random.Generator) -> Colour:
    """Return a colour about `contrast` grey levels from `base`, on the side that has the room for it."""
    sign = 1 if base.mean() + rng.uniform(-40, 40) < 128 else -1
    red, green, blue = np.clip(base + sign * contrast + rng.normal(0, contrast / 3, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _clutter(
    canvas: Image.Image, base: NDArray[np.int64], fragment: Draw, nuisance: Nuisance, rng: np.random.Generator
) -> None:
    """Draw lines anywhere, and fragments towards the border."""
    for _ in range(rng.integers(nuisance.most_lines + 1)):
        _draw_line(canvas, base, rng)
    for _ in range(rng.integers(nuisance.most_fragments + 1)):
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(28, 38)
        shift = distance * np.array([math.cos(angle), math.sin(angle)])
        mask = _placed(fragment(rng), rng.uniform(14, 28), shift, nuisance, rng)
        canvas.paste(_ink(base, rng.uniform(*nuisance.contrast), rng), mask=mask)


def _draw_line(canvas: Image.Image, base: NDArray[np.int64], rng: np.random.Generator) -> None:
    ends = rng.uniform(0, IMAGE_SIZE, 4).tolist()
    ImageDraw.Draw(canvas).line(ends, _ink(base, rng.uniform(10, 90), rng), width=int(rng.integers(1, 4)))


def _placed(
    mask: Image.Image, height: float, shift: NDArray[np.float64], nuisance: Nuisance, rng: np.random.Generator
) -> Image.Image:
    """Return `mask` turned, sheared and stretched, `height` pixels high and `shift` (x, y) from the middle."""
    angle = math.radians(rng.uniform(-nuisance.most_degrees, nuisance.most_degrees))
    shear = rng.uniform(-nuisance.most_shear, nuisance.most_shear)
    stretch = math.exp(rng.uniform(-nuisance.most_stretch, nuisance.most_stretch))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # From a pixel of the image back to one of the mask, as Pillow wants it.
    back = turn @ np.array([[1 / stretch, shear], [0, 1]]) * (HEIGHT / height)
    start = np.full(2, CANVAS / 2) - back @ (IMAGE_SIZE / 2 + shift)
    coefficients = (*back[0], start[0], *back[1], start[1])
    if height < HEIGHT / 2:
        mask = mask.filter(ImageFilter.BoxBlur(HEIGHT / height / 4))
    return mask.transform((IMAGE_SIZE, IMAGE_SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)


def _exposed(canvas: Image.Image, nuisance: Nuisance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the image that a poor camera takes of `canvas`: blurred, of more or less contrast, noisy."""
    if rng.random() < nuisance.blurred_share:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, nuisance.most_blur)))
    light = np.asarray(canvas, np.float32) * rng.uniform(0.7, 1.15) + rng.uniform(-15, 15)
    light += rng.uniform(*nuisance.noise) * rng.standard_normal(light.shape, np.float32)
    levels: NDArray[np.uint8] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return levels

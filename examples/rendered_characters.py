"""A hundred characters as a camera might meet them: Latin, Greek, Cyrillic, digits and signs, in twelve faces.

A harder task than `rendered_digits.py`, whose camera takes these images too: ten times as many classes, some of which
differ by one stroke (Ъ and Б, ξ and ζ, C and G). The fonts are those that matplotlib contains. An image is a function
of a seed, a split and a number, and shows character `number % 100`. Splits share no image; they do share the faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.glyphs import CANVAS, HEIGHT, SPLITS
from examples.rendered_digits import Nuisance, camera_image

CHARACTERS: Final = (
    "123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghijmnqrtyΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπσφψωБДЖИЙЛЦЧШЩЫЭЮЯ&%@#?§£$€¶÷ß"
)
LABELS: Final = tuple(f"U+{ord(character):04X}" for character in CHARACTERS)
"""Code points: names of folders on any file system, in the order of the classes' numbers."""

FACES: Final = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)

NUISANCE: Final = Nuisance(
    heights=(36, 52),
    most_degrees=10,
    most_shear=0.1,
    most_stretch=0.12,
    most_shift=4,
    contrast=(60, 170),
    most_lines=1,
    most_fragments=1,
    crossed_share=0.1,
    blurred_share=0.4,
    noise=(2, 14),
)
"""Milder than that of the digits. Training images have none of it to all of it, as a network learns nothing at first
from hard images alone."""

_SEED_OF_CHARACTERS: Final = 100
"""Keeps these draws apart from those of the digits."""


def images_of(split: str, numbers: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    """Return the images of `split` with these `numbers`: (N, 64, 64, 3) uint8 RGB.

    >>> images_of("held_out", range(2)).shape
    (2, 64, 64, 3)
    """
    return np.stack([_image(split, number, seed) for number in numbers])


def write_split(folder: Path, split: str, count: int, seed: int = 0, processes: int = 1) -> None:
    """Write the first `count` images of `split` as `folder/<code point>/NNNNNN.png`."""
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
    write = partial(_write, folder, split, seed)
    if processes == 1:
        for number in range(count):
            write(number)
        return
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(write, range(count), chunksize=100))


@cache
def mask_of(character: str, face: str) -> Image.Image:
    """Return `character` as a mask (mode L, `CANVAS` square), its larger side `HEIGHT` pixels, in the middle."""
    font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", face), 4 * HEIGHT)
    large = Image.new("L", (8 * HEIGHT, 8 * HEIGHT))
    ImageDraw.Draw(large).text((4 * HEIGHT, 4 * HEIGHT), character, 255, font, anchor="mm")
    drawn = large.crop(large.getbbox())
    width, height = (max(1, round(side * HEIGHT / max(drawn.size))) for side in drawn.size)
    mask = Image.new("L", (CANVAS, CANVAS))
    mask.paste(drawn.resize((width, height)), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return mask


def _image(split: str, number: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng((_SEED_OF_CHARACTERS, seed, SPLITS.index(split), number))
    turn, place = divmod(number, len(CHARACTERS))
    nuisance = NUISANCE.eased(turn % 4 / 3) if split == "training" else NUISANCE
    return camera_image(lambda rng: mask_of(CHARACTERS[place], _face(rng)), _fragment, nuisance, rng)


def _fragment(rng: np.random.Generator) -> Image.Image:
    return mask_of(CHARACTERS[rng.integers(len(CHARACTERS))], _face(rng))


def _face(rng: np.random.Generator) -> str:
    return FACES[rng.integers(len(FACES))]


def _write(folder: Path, split: str, seed: int, number: int) -> None:
    path = folder / LABELS[number % len(LABELS)] / f"{number:06d}.png"
    Image.fromarray(_image(split, number, seed)).save(path)

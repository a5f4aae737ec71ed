"""Handwritten digits as images: scikit-learn's 8x8 grey scans enlarged to 32x32, in one fixed split.

Training, the committed held-out images and the calibration samples all come from here, and training prepares its
inputs with the runtime's own code, so that a runner sees what the network was trained on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.images import LoadedImage
from densenet_deploy.runtime.preprocess import prepare_batch

IMAGE_SIZE: Final = 32
SPLIT_SEED: Final = 0
HELD_OUT_SHARE: Final = 0.2
LABELS: Final = tuple("0123456789")

# Mean and deviation of the grey values in the training split, rounded.
PREPROCESSING: Final = Preprocessing(
    image_size=IMAGE_SIZE, resize=IMAGE_SIZE, mean=(0.306, 0.306, 0.306), std=(0.324, 0.324, 0.324)
)

_GREY_LEVELS: Final = 16


@dataclass(frozen=True)
class Digits:
    """`images` (N, H, W) grey or (N, H, W, 3) RGB, uint8, and the digit each shows: `digits` (N,) int64."""

    images: NDArray[np.uint8]
    digits: NDArray[np.int64]


def digits_split() -> tuple[Digits, Digits]:
    """Return (training, held-out): 80 % and 20 % of the 1797 digits, each digit in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, digits = load_digits(return_X_y=True)
    images = np.stack([_enlarged(scan.reshape(8, 8)) for scan in scans])
    parts = train_test_split(
        images, digits.astype(np.int64), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=digits
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def inputs_from(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a runner makes of grey `images` (N, 32, 32): float32 (N, 3, 32, 32), normalized."""
    rgb = np.repeat(images[..., None], 3, axis=-1)
    return prepare_batch([LoadedImage.from_array(image) for image in rgb], PREPROCESSING)


def write_images(folder: Path, data: Digits) -> None:
    """Write `data` as `folder/<digit>/NNNN.png` (8-bit grey or RGB), replacing those folders of digits."""
    for label in LABELS:
        shutil.rmtree(folder / label, ignore_errors=True)
    for number, (image, digit) in enumerate(zip(data.images, data.digits, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, optimize=True)


def _enlarged(scan: NDArray[np.float64]) -> NDArray[np.uint8]:
    grey = np.rint(scan * (255 / _GREY_LEVELS)).astype(np.uint8)
    return np.asarray(Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))

"""What tests train: a network of two layers, on images of 8 pixels that show a dark or a light square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densenet_deploy.facts import Architecture

ARCHITECTURE = Architecture(growth_rate=2, blocks=(1, 1), init_features=4, bn_size=2, stem="cifar")
FACTS: dict[str, Any] = {"architecture": ARCHITECTURE, "image_size": 8, "resize": 8, "mean": 0.5, "std": 0.25}
LINE = (
    *("--growth-rate", 2, "--blocks", "1,1", "--init-features", 4, "--bn-size", 2, "--stem", "cifar"),
    *("--image-size", 8, "--resize", 8, "--mean", 0.5, "--std", 0.25, "--no-flip"),
)
"""The same as options of the command line."""


def write_classes(folder: Path, count: int = 20, names: tuple[str, ...] = ("dark", "light"), seed: int = 0) -> Path:
    """Write `count` images of each class, whose square is the lighter, the later its name comes."""
    generator = np.random.default_rng(seed)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (8, 8, 3), np.uint8)
            pixels[2:6, 2:6] += np.uint8(150 * index // (len(names) - 1))
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder

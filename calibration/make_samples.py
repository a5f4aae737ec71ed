"""Write the calibration samples, 128 digits of the training split and as many of each as can be.

Run `python -m calibration.make_samples` in the root of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from examples.digits_data import LABELS, Digits, digits_split, write_images

FOLDER: Final = Path(__file__).parent / "samples"
COUNT: Final = 128
SEED: Final = 0


def balanced_sample(data: Digits, count: int, seed: int) -> Digits:
    """Return `count` of `data`, drawn without repetition so that no digit has two more than another."""
    order = np.random.default_rng(seed).permutation(len(data.digits))
    by_digit = [order[data.digits[order] == digit] for digit in range(len(LABELS))]
    turns = [members[turn] for turn in range(max(map(len, by_digit))) for members in by_digit if turn < len(members)]
    chosen = np.sort(turns[:count])
    return Digits(data.images[chosen], data.digits[chosen])


if __name__ == "__main__":
    training, _ = digits_split()
    write_images(FOLDER, balanced_sample(training, COUNT, SEED))

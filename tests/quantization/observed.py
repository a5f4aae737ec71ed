"""A function with two layers, and noise to feed it, for tests of calibration."""

from collections.abc import Mapping

import numpy as np


def two_layers(batch: np.ndarray) -> Mapping[str, np.ndarray]:
    """A signed tensor of 4 channels and its ReLU, each channel ten times as wide as the one before."""
    mixed = np.concatenate([batch, batch[:, :1] - batch[:, 1:2]], axis=1)
    signed = mixed * np.float32([0.1, 1, 10, 100]).reshape(4, 1, 1)
    return {"signed": signed, "relu": np.maximum(signed, np.float32(0))}


def samples(count: int, size: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Normal noise, (1, 3, size, size) each."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 3, size, size), np.float32) for _ in range(count)]

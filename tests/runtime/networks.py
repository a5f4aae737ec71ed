"""Small networks as text, for tests that need a file and no convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx

MEANS: Final = """<ir_version: 8, opset_import: ["" : 18]>
means (float[N,3,8,8] input) => (float[N,3] logits) {
  pooled = GlobalAveragePool(input)
  logits = Flatten(pooled)
}"""
"""The mean of each channel."""


def write_network(folder: Path, text: str = MEANS, name: str = "means.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def images(count: int, seed: int = 0) -> np.ndarray:
    """Whole numbers, of which float32 computes the mean of 64 exactly: `array.mean((2, 3))`."""
    return np.random.default_rng(seed).integers(-9, 9, (count, 3, 8, 8)).astype(np.float32)

"""Activations and histograms to give to observers."""

from __future__ import annotations

import numpy as np

from densenet_deploy.quantization.observers.histogram import HistogramObserver
from densenet_deploy.quantization.observers.observer import Floats, Observer, ObserverOptions


def columns(*channels: list[float]) -> Floats:
    """One sample (1, C, P) of the given values of each channel."""
    return np.float32(channels)[None]


def observed(kind: type[Observer], *arrays: Floats, options: ObserverOptions | None = None) -> Observer:
    """An observer that has seen the arrays."""
    observer = kind(arrays[0].shape[1], options)
    for array in arrays:
        observer.update(array)
    return observer


def with_counts(kind: type[HistogramObserver], counts: np.ndarray, low: float, options: ObserverOptions) -> Observer:
    """An observer with these counts, (C, bins), of bins 1 wide; they reach from `low` to just below the last edge.

    The largest value need not be among those counted, of which there are at most so many pixels of an image.
    """
    channels, bins = counts.shape
    observer = kind(channels, options)
    observer.restore(
        {
            "low": np.full(channels, low, np.float32),
            "high": np.full(channels, np.nextafter(np.float32(bins), np.float32(0))),
            "counts": np.concatenate([np.full((channels, 1), 5), counts], axis=1).astype(np.uint32),
            "exponents": np.full(channels, bins.bit_length() - 1, np.int32),
        }
    )
    return observer


def sparse_counts(channels: int, bins: int, seed: int) -> np.ndarray:
    """Counts (C, bins) of every shape: many bins empty or with one value, an end cut off anywhere, lonely outliers."""
    rng = np.random.default_rng(seed)
    filled = rng.random((channels, bins)) < rng.uniform(0.02, 1, (channels, 1))
    largest = rng.integers(1, 40, (channels, 1))
    decay = np.exp(-np.arange(bins) * rng.uniform(0, 0.03, (channels, 1)))
    counts = np.ceil(rng.random((channels, bins)) * largest * decay) * filled
    counts[np.arange(bins) >= rng.integers(1, bins + bins // 2, (channels, 1))] = 0
    counts[np.arange(channels), rng.integers(0, bins, channels)] += 1
    return counts.astype(np.int64)

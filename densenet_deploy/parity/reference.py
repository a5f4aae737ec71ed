"""The forward pass of a DenseNet in NumPy, in float64: the reference of an export where PyTorch is not installed.

It follows "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993) layer by layer, norms and
convolutions apart, and shares nothing with what writes the ONNX graph (`models.operations`): neither the list of nodes
nor the folding of norms. A convolution is the sum over the kernel's pixels of one matrix product each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from densenet_deploy.variants.hidden import named_hidden_layers
from densenet_deploy.variants.spec import DenseNetSpec

Doubles = npt.NDArray[np.float64]
Weights = Mapping[str, npt.NDArray[Any]]


def numpy_outputs(spec: DenseNetSpec, weights: Weights, images: npt.NDArray[Any]) -> Doubles:
    """Return the output rows (N, `spec.output_width`) of the network for `images` (N, C, H, W).

    >>> numpy_outputs(spec, weights, np.zeros((1, 3, 32, 32))).shape                          # doctest: +SKIP
    (1, 10)

    Args:
        spec: the architecture.
        weights: arrays by the names of a state dict.
        images: normalized, of any size that the network takes.
    """
    network = _Network(weights)
    leaving = _blocks(network, spec, _stem(network, spec, images.astype(np.float64)))
    if spec.head == "multiscale":
        scales = (network.conv(f"head.reduce{number}.conv", maps) for number, maps in enumerate(leaving, start=1))
        row: Doubles = np.concatenate([maps.mean((2, 3)) for maps in scales], 1)
    else:
        row = _hidden(network, spec, _pooled(network, spec, leaving[-1]))
    return row if spec.head == "features" else network.linear("classifier", row)


class _Network:
    """The layers with weights, by name."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def conv(self, name: str, maps: Doubles, stride: int = 1) -> Doubles:
        """Convolve with a margin of zeros that keeps the size at stride 1."""
        weight = self._numbers(f"{name}.weight")
        margin = weight.shape[2] // 2
        padded = np.pad(maps, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        made = _weighted_windows(padded, weight, stride)
        bias = f"{name}.bias"
        return made + self._numbers(bias)[:, None, None] if bias in self._weights else made

    def norm(self, name: str, values: Doubles) -> Doubles:
        """Normalize maps (N, C, H, W) or rows (N, C) by the running statistics."""
        parts = (self._numbers(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, scale, shift = (part.reshape(-1, *[1] * (values.ndim - 2)) for part in parts)
        normalized: Doubles = (values - mean) / np.sqrt(variance + 1e-5) * scale + shift
        return normalized

    def linear(self, name: str, rows: Doubles) -> Doubles:
        made: Doubles = rows @ self._numbers(f"{name}.weight").T
        bias = f"{name}.bias"
        return made + self._numbers(bias) if bias in self._weights else made

    def _numbers(self, name: str) -> Doubles:
        return self._weights[name].astype(np.float64)


def _weighted_windows(padded: Doubles, weight: Doubles, stride: int) -> Doubles:
    """(N, C, H, W) and (out, C, K, K) → (N, out, h, w)."""
    kernel = weight.shape[2]
    height, width = ((side - kernel) // stride + 1 for side in padded.shape[2:])
    made = np.zeros((len(padded), len(weight), height * width))
    for row, column in np.ndindex(kernel, kernel):
        pixels = padded[:, :, row:, column:][:, :, : height * stride : stride, : width * stride : stride]
        made += weight[:, :, row, column] @ pixels[:, :, :height, :width].reshape(*padded.shape[:2], -1)
    return made.reshape(*made.shape[:2], height, width)


def _windows(maps: Doubles, size: int) -> Doubles:
    """(N, C, H, W) → (N, C, h, w, size, size): every window of size x size, one pixel apart."""
    windows: Doubles = np.lib.stride_tricks.sliding_window_view(maps, (size, size), axis=(2, 3))
    return windows


def _relu(values: Doubles) -> Doubles:
    return np.maximum(values, 0)


def _stem(network: _Network, spec: DenseNetSpec, maps: Doubles) -> Doubles:
    stem = spec.stem_layers
    for index in range(stem.convolutions):
        maps = network.conv(f"features.conv{index}", maps, stem.stride if index == 0 else 1)
        if stem.norm:
            maps = _relu(network.norm(f"features.norm{index}", maps))
    if stem.pool == "none":
        return maps
    lowest = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    maxima: Doubles = _windows(lowest, 3).max((4, 5))
    return maxima[:, :, ::2, ::2] if stem.pool == "max" else _blurred(maxima)


def _blurred(maps: Doubles) -> Doubles:
    """Every other pixel of `maps` weighted by (1, 2, 1)/4 along both axes; the margin mirrors them."""
    mirrored = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    filtered: Doubles = np.einsum("nchwij,i,j->nchw", _windows(mirrored, 3)[:, :, ::2, ::2], _BINOMIAL, _BINOMIAL)
    return filtered


_BINOMIAL = np.array([1.0, 2.0, 1.0]) / 4


def _blocks(network: _Network, spec: DenseNetSpec, maps: Doubles) -> list[Doubles]:
    """What leaves each block."""
    leaving = []
    for block, layers in enumerate(spec.blocks, start=1):
        for number in range(1, layers + 1):
            new = _layer(network, f"features.denseblock{block}.denselayer{number}", maps, spec)
            maps = np.concatenate([maps, new], 1)
        leaving.append(maps)
        if block < len(spec.blocks):
            name = f"features.transition{block}"
            maps = _halved(network.conv(f"{name}.conv", _relu(network.norm(f"{name}.norm", maps))))
    return leaving


def _layer(network: _Network, name: str, maps: Doubles, spec: DenseNetSpec) -> Doubles:
    new = network.conv(f"{name}.conv1", _relu(network.norm(f"{name}.norm1", maps)))
    if spec.bn_size == 0:
        return new
    return network.conv(f"{name}.conv2", _relu(network.norm(f"{name}.norm2", new)))


def _halved(maps: Doubles) -> Doubles:
    """The mean of every square of 2x2 pixels; an odd row or column is dropped."""
    height, width = (side // 2 * 2 for side in maps.shape[2:])
    whole = maps[:, :, :height, :width]
    mean: Doubles = whole.reshape(*maps.shape[:2], height // 2, 2, width // 2, 2).mean((3, 5))
    return mean


def _pooled(network: _Network, spec: DenseNetSpec, maps: Doubles) -> Doubles:
    """The last maps as one row per image."""
    maps = network.norm("features.norm5", maps)
    if spec.pooling == "relu-avg":
        maps = _relu(maps)
    if spec.pooling == "max-avg":
        return np.concatenate([maps.max((2, 3)), maps.mean((2, 3))], 1)
    mean: Doubles = maps.mean((2, 3))
    return mean


def _hidden(network: _Network, spec: DenseNetSpec, row: Doubles) -> Doubles:
    for name, layer, _ in named_hidden_layers(spec.hidden, spec.pooled_width):
        if layer.kind == "relu":
            row = _relu(row)
        else:
            row = (network.norm if layer.kind == "norm" else network.linear)(f"head.{name}", row)
    return row

"""Feed any number of samples to a runner whose batch may be fixed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner


def fixed_batch(runner: Runner) -> int | None:
    """Return the batch size that the model insists on, or None if it takes any."""
    return runner.inputs[0].shape[0]


def input_size(runner: Runner) -> int | None:
    """Return the height and width in pixels of the model's square images, or None where they may vary.

    Raises:
        ModelFileError: if the model does not take one float32 (N, 3, S, S) input.
    """
    spec = runner.inputs[0]
    shape = spec.shape
    is_image = len(runner.inputs) == 1 and len(shape) == 4 and shape[1] in (3, None) and shape[2] == shape[3]
    if not is_image or spec.dtype != np.float32:
        found = ", ".join(map(str, runner.inputs))
        raise ModelFileError(found, "is not one float32 (N, 3, S, S) input", "give an image classifier in NCHW layout")
    return shape[2]


def run_batched(runner: Runner, samples: Array) -> dict[str, Array]:
    """Run samples (M, 3, H, W) and return the outputs of all M, by name.

    A model with a fixed batch gets the samples in portions, the last one filled up with copies of its last sample.
    """
    name, size = runner.inputs[0].name, fixed_batch(runner)
    if size is None or size == len(samples):
        return runner.run({name: samples})
    results = [_trimmed(runner.run({name: full}), count) for full, count in _portions(samples, size)]
    return {output: np.concatenate([result[output] for result in results]) for output in results[0]}


def _portions(samples: Array, size: int) -> Iterator[tuple[Array, int]]:
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        filler = np.repeat(part[-1:], size - len(part), axis=0)
        yield np.concatenate([part, filler]), len(part)


def _trimmed(outputs: dict[str, Array], count: int) -> dict[str, Array]:
    return {name: array[:count] for name, array in outputs.items()}

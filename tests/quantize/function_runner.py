"""A real runner whose arithmetic is a Python function of the batch; its results are the tensors to observe."""

from collections.abc import Callable, Mapping

import numpy as np

from densenet_deploy.runtime.feeds import TensorSpec
from densenet_deploy.runtime.runner import Device, Placement, Runner, RunnerOptions

Tensors = Mapping[str, np.ndarray]


class FunctionRunner(Runner):
    """Runs `function(batch) -> tensors`; `runs` counts the calls."""

    name = "function"

    def __init__(self, function: Callable[[np.ndarray], Tensors], size: int = 8) -> None:
        example = function(np.zeros((1, 3, size, size), np.float32))
        inputs = (TensorSpec("input", (None, 3, size, size), np.dtype(np.float32)),)
        outputs = tuple(TensorSpec(k, (None, *v.shape[1:]), v.dtype) for k, v in example.items())
        super().__init__(function, inputs, outputs, Placement("function", "0", "cpu", "python", "fp32", 1), None)
        self.runs = 0

    @classmethod
    def open(cls, source: object, device: Device | None, options: RunnerOptions) -> Runner:
        raise NotImplementedError

    @classmethod
    def probe(cls) -> tuple[str, tuple[str, ...]]:
        return "0", ("cpu",)

    def _run(self, handle, feeds):
        self.runs += 1
        return dict(handle(feeds["input"]))


def two_layers(batch: np.ndarray) -> Tensors:
    """A signed tensor of 4 channels and its ReLU, each channel ten times as wide as the one before."""
    mixed = np.concatenate([batch, batch[:, :1] - batch[:, 1:2]], axis=1)
    signed = mixed * np.float32([0.1, 1, 10, 100]).reshape(4, 1, 1)
    return {"signed": signed, "relu": np.maximum(signed, np.float32(0))}


def samples(count: int, size: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Normal noise, (1, 3, size, size) each."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, 3, size, size), np.float32) for _ in range(count)]

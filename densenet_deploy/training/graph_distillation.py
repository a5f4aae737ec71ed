"""Train a float graph to give the outputs of another one, on images without labels.

The loss is the mean over the outputs of ‖y − t‖² / ‖t − mean‖², t what the teacher gives: its inverse is the signal to
noise ratio that parity reports. Adam with a cosine to zero over the time that is allowed, in a seeded order of images.
After every pass images that are not trained on are measured, and the best weights of all passes are returned, the first
weights among them: so the result is never worse on those than the graph that was given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from densenet_deploy.training.graph_module import GraphModule

Array = npt.NDArray[Any]
Targets = Mapping[str, Array]

_TRAINED: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "BatchNormalization": (1, 2),
}
"""Operators, and which of their inputs are trained: not the running statistics of a norm."""

_LEARNING_RATE: Final = 1e-4
_MOST_PER_BATCH: Final = 16
_PIXELS_PER_BATCH: Final = 2**18
_PATIENCE: Final = 10
_MOST_PASSES: Final = 200


@dataclass(frozen=True)
class Examples:
    """Inputs (N, C, H, W), and the teacher's outputs (N, …) for them by name."""

    inputs: Array
    targets: Targets

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Distilled:
    """The graph with the best weights, how many passes were made, which one is the best (0: none), and both losses."""

    proto: onnx.ModelProto
    passes: int
    best_pass: int
    loss_before: float
    loss_after: float


def distil(
    model: onnx.ModelProto,
    train: Examples,
    judge: Examples,
    seconds: float,
    *,
    seed: int = 0,
    batch: int | None = None,
    step: Callable[[int, int | None], None] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Distilled:
    """Train the weights of `model` for at most `seconds`, and no longer than it helps.

    Args:
        model: a float graph with one input.
        train: what is trained on.
        judge: what decides which weights are the best, and when to stop: after 10 passes without a better one.
        seconds: a pass is not begun if it would not end in time, as far as the last one tells; one is always made.
        seed: of the order of images.
        batch: that of a graph with a fixed one.
        step: called after each pass with the number of passes done.
        now: the clock.

    Raises:
        ModelFileError: if the graph holds an operator that PyTorch does not run here.
    """
    names, size = trained_initializers(model), batch or _batch_for(train.inputs)
    module = GraphModule(model, names)
    optimizer = torch.optim.Adam([module.initializer(name) for name in names], lr=_LEARNING_RATE)
    scales = {name: _power(target) for name, target in train.targets.items()}
    order = torch.Generator().manual_seed(seed)
    before = best = _measured(module, judge, scales, size)
    kept, best_pass, done, begun = _weights(module, names), 0, 0, now()
    while done < _MOST_PASSES and done - best_pass < _PATIENCE:
        elapsed = now() - begun
        if done and elapsed + elapsed / done > seconds:
            break
        share = max(elapsed / seconds, done / _MOST_PASSES)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        for part in _batches(train, order, size):
            optimizer.zero_grad()
            loss = _loss(module, part, scales)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        done += 1
        found = _measured(module, judge, scales, size)
        if found < best:  # False for NaN as well
            kept, best, best_pass = _weights(module, names), found, done
        if not math.isfinite(found):
            break
        if step is not None:
            step(done, None)
    with torch.no_grad():
        for name, weight in kept.items():
            module.initializer(name).copy_(weight)
    return Distilled(module.written(), done, best_pass, before, best)


def trained_initializers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the float32 weights, biases and norms of `model`, in the order of their use."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    read = (
        node.input[place]
        for node in model.graph.node
        for place in _TRAINED.get(node.op_type, ())
        if place < len(node.input)
    )
    return tuple(name for name in dict.fromkeys(read) if name in stored)


def _loss(module: GraphModule, part: Examples, scales: Mapping[str, float]) -> Tensor:
    outputs = module(torch.from_numpy(part.inputs))
    losses = [
        ((outputs[name] - torch.from_numpy(target)) ** 2).mean() / scales[name] for name, target in part.targets.items()
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def _measured(module: GraphModule, judge: Examples, scales: Mapping[str, float], size: int) -> float:
    """The loss of `judge` in whole batches of `size`, the last of which may overlap the one before it."""
    size = min(size, len(judge))
    starts = [min(start, len(judge) - size) for start in range(0, len(judge), size)]
    losses = [float(_loss(module, _part(judge, range(start, start + size)), scales)) for start in starts]
    return sum(losses) / len(losses)


def _batch_for(inputs: Array) -> int:
    """As many images as are trained on at once: few large ones, whose activations all stay in memory."""
    return max(2, min(_MOST_PER_BATCH, _PIXELS_PER_BATCH // int(np.prod(inputs.shape[2:]))))


def _batches(train: Examples, order: torch.Generator, size: int) -> Iterator[Examples]:
    size = min(size, len(train))
    drawn = torch.randperm(len(train), generator=order).numpy()
    for start in range(0, len(train) - size + 1, size):
        yield _part(train, drawn[start : start + size])


def _part(examples: Examples, places: Sequence[int] | Array) -> Examples:
    chosen = np.asarray(places)
    return Examples(examples.inputs[chosen], {name: target[chosen] for name, target in examples.targets.items()})


def _weights(module: GraphModule, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: module.initializer(name).detach().clone() for name in names}


def _power(target: Array) -> float:
    """The variance of an output over the images, as a mean over its values."""
    return float(((target - target.mean(axis=0)) ** 2).mean()) or 1.0

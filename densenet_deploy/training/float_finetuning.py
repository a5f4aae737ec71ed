"""Train a float graph to give the outputs of another one on images without labels; the loop is `int8_finetuning`'s.

Trained are weights, biases, and scales and shifts of norms, not their running statistics. On a DenseNet of the digits
with half of its bottleneck channels, 1e-4 and 3e-4 as the learning rate of Adam gave the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from densenet_deploy.training.int8_finetuning import Finetuned, FinetuneOptions, Samples, Trained, finetune

Array = npt.NDArray[Any]

_TRAINED: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "BatchNormalization": (1, 2),
}
"""Operators, and which of their inputs are trained."""

_LEARNING_RATE: Final = 1e-4
_MOST_PER_BATCH: Final = 16
_PIXELS_PER_BATCH: Final = 2**18


def finetune_float(
    model: onnx.ModelProto,
    target: onnx.ModelProto,
    learnt: Array,
    held_out: Samples,
    seconds: float,
    *,
    seed: int = 0,
    step: Callable[[int, int | None], None] | None = None,
) -> Finetuned:
    """Return the float graph `model` with the weights that are best on `held_out` after learning from `learnt`.

    Args:
        model: a graph with one input.
        target: the teacher, with the same input and outputs.
        learnt: images to learn from, (N, C, H, W); mixtures of them are learnt from.
        held_out: images to choose the best weights on, and the teacher's outputs.
        seconds: how long that may take; it makes fewer steps where they do not fit in.
        seed: of the order of images.
        step: called after each step.

    Raises:
        ModelFileError: if the graph holds an operator that PyTorch does not run here.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    trained = {name: _plain(numpy_helper.to_array(stored[name])) for name in float_weights(model)}
    pixels = int(np.prod(learnt.shape[2:]))
    batch = max(1, min(_MOST_PER_BATCH, _PIXELS_PER_BATCH // pixels))  # their activations all stay in memory
    options = FinetuneOptions(batch=batch, lr=_LEARNING_RATE, seconds=seconds, seed=seed)
    return finetune(model, target, learnt, held_out, options, step, trained)


def float_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the float32 weights, biases and norms of `model`, in the order of their use."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    read = (
        node.input[place]
        for node in model.graph.node
        for place in _TRAINED.get(node.op_type, ())
        if place < len(node.input)
    )
    return tuple(name for name in dict.fromkeys(read) if name in stored)


def _plain(start: Array) -> Trained:
    parameter = torch.nn.Parameter(torch.tensor(start))
    return Trained(parameter, lambda: parameter, lambda: parameter.detach().numpy())

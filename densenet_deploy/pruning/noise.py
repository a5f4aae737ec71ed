"""How much of an error in one layer arrives at the outputs of a network.

Errors of layers are nearly independent, so their powers add up at the outputs: n = Σ gₗ·eₗ, with eₗ the squared error
of layer l relative to the variance of what it makes, and n likewise at the outputs. Each gain g is measured with white
noise of 20 dB below the signal on the layer's output, on a few images; all layers share one session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from densenet_deploy.graph.onnx_file import expose_values
from densenet_deploy.pruning.segments import open_part
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Runner

_RELATIVE_POWER: Final = 0.01
_ADDED: Final = ":noise"
_CLEAN: Final = ":clean"


def noise_gains(model: onnx.ModelProto, tensors: Sequence[str], images: Array, seed: int = 0) -> dict[str, float]:
    """Return the gain of each of `tensors`, made by nodes of `model`, on a batch of images (N, C, H, W)."""
    maps = _outputs(expose_values(model, set(tensors)), images)
    rng, gains = np.random.default_rng(seed), {}
    with open_part(_with_noise(model, tensors).SerializeToString()) as runner:
        fed = next(value.name for value in runner.inputs if not value.name.endswith(_ADDED))
        feeds = {f"{name}{_ADDED}": np.zeros((1,) * maps[name].ndim, np.float32) for name in tensors} | {fed: images}
        clean = runner.run(feeds)
        for name in tensors:
            deviation = np.sqrt(_RELATIVE_POWER) * float(maps[name].std())
            noise = (deviation * rng.standard_normal(maps[name].shape)).astype(np.float32)
            gains[name] = _relative_noise(runner, feeds | {f"{name}{_ADDED}": noise}, clean) / _RELATIVE_POWER
    return gains


def _relative_noise(runner: Runner, feeds: Mapping[str, Array], clean: Mapping[str, Array]) -> float:
    """The power of the change of the outputs by the variance of each, added up."""
    found = runner.run(feeds)
    total = 0.0
    for name, expected in clean.items():
        signal = float(((expected - expected.mean(axis=0)) ** 2).sum())
        total += float(((found[name] - expected) ** 2).sum()) / signal if signal else 0.0
    return total


def _outputs(model: onnx.ModelProto, images: Array) -> Mapping[str, Array]:
    with open_part(model.SerializeToString()) as runner:
        outputs: Mapping[str, Array] = runner.run({runner.inputs[0].name: images})
        return outputs


def _with_noise(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a copy in which each of `tensors` is a sum with an input of its own."""
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    nodes = list(noisy.graph.node)
    del noisy.graph.node[:]
    for node in nodes:
        named = [name for name in node.output if name in tensors]
        for index, name in enumerate(node.output):
            if name in named:
                node.output[index] = f"{name}{_CLEAN}"
        noisy.graph.node.append(node)
        noisy.graph.node.extend(
            helper.make_node("Add", [f"{name}{_CLEAN}", f"{name}{_ADDED}"], [name]) for name in named
        )
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    noisy.graph.input.extend(
        helper.make_tensor_value_info(f"{name}{_ADDED}", TensorProto.FLOAT, [None] * ranks.get(name, 4))
        for name in tensors
    )
    return noisy

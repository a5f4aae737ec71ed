"""How much memory the tensors of a network need at their peak, measured by running it: an inference or a training step.

The network runs on the meta device: every operation allocates and frees as it would, but nothing is computed, so a
DenseNet-264 at batch 256 is measured in seconds. What counts is what is alive at once: the image, feature
maps, what autograd keeps for the backward pass, and gradients. Weights and running statistics stand beside it; scratch
space inside a kernel is not measured. `analysis.memory` counts the same for DenseNets without PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import Size, sides


@dataclass(frozen=True)
class StageMemory:
    """The most bytes alive while the stage `name` ran forward, and backward (0 in an inference)."""

    name: str
    forward_bytes: int
    backward_bytes: int


@dataclass(frozen=True)
class LiveMemory:
    """The peaks of the stages in execution order, and the bytes of the weights, which are not among them.

    `peak_bytes` includes the gradients of the weights after a training step; they are as large as `weights_bytes`.
    """

    stages: tuple[StageMemory, ...]
    peak_bytes: int
    weights_bytes: int

    def by_part(self, part_of: Callable[[str], str]) -> LiveMemory:
        """Return the same with the stages of one part of the network merged: the larger of their peaks."""
        parts: dict[str, list[StageMemory]] = {}
        for stage in self.stages:
            parts.setdefault(part_of(stage.name), []).append(stage)
        merged = (
            StageMemory(name, max(s.forward_bytes for s in stages), max(s.backward_bytes for s in stages))
            for name, stages in parts.items()
        )
        return dataclasses.replace(self, stages=tuple(merged))


def inference_memory(module: nn.Module, image_size: Size, batch: int = 1, channels: int = 3) -> LiveMemory:
    """Measure one inference of `module`, which must be on the meta device, for float32 images (batch, C, S, S)."""
    return _measured(module.eval(), (batch, channels, *sides(image_size)), trains=False)


def training_memory_of(module: nn.Module, image_size: Size, batch: int = 1, channels: int = 3) -> LiveMemory:
    """Measure one forward and backward pass of `module`, which must be on the meta device; see `inference_memory`.

    Raises:
        UsageError: if a norm would see a single value per channel, which has no variance.
    """
    try:
        return _measured(module.train(), (batch, channels, *sides(image_size)), trains=True)
    except ValueError as exc:
        if "more than 1 value per channel" not in str(exc):
            raise
        why = f"leaves a norm one value per channel at {image_size} pixels, which cannot be trained"
        raise UsageError(f"batch={batch}", why, "give a larger batch or image size") from exc


def _measured(module: nn.Module, shape: tuple[int, ...], *, trains: bool) -> LiveMemory:
    weights = sum(parameter.nbytes for parameter in module.parameters())
    meter = _Meter([*module.parameters(), *module.buffers()])
    with torch.set_grad_enabled(trains), _stages_announced(module, meter), meter:
        output = module(torch.empty(shape, device="meta"))
        if trains:
            meter.stage, meter.backward = None, True
            output.sum().backward()
    module.zero_grad()
    names = dict.fromkeys(name for name, _ in meter.peaks)
    stages = (StageMemory(name, meter.peaks[name, False], meter.peaks[name, True]) for name in names)
    return LiveMemory(tuple(stages), meter.peak, weights)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations allocate, until each is freed, but not those of the `known` tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage: str | None = None
        self.backward = False
        self.peak = self._live = 0
        self.peaks: defaultdict[tuple[str, bool], int] = defaultdict(int)
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._known_ids = {id(storage) for storage in self._known}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self._live)
        if self.stage is not None:
            key = self.stage, self.backward
            self.peaks[key] = max(self.peaks[key], self._live)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self._known_ids or place in self._seen:
            return

        def freed(_: object) -> None:
            self._live -= size
            del self._seen[place]

        self._seen[place] = weakref.ref(storage, freed)
        self._live += size


@contextmanager
def _stages_announced(module: nn.Module, meter: _Meter) -> Iterator[None]:
    """Set `meter.stage` to the stage that runs: a child of `features`, such as a dense block, or of the module."""
    handles = []
    for name, stage in _stages(module):
        begin = functools.partial(_begin, meter, name)
        handles.append(stage.register_forward_pre_hook(begin))
        handles.append(stage.register_forward_hook(functools.partial(_announce_backward, begin)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stages(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of `module`, with those of its `features` in their place."""
    for name, child in module.named_children():
        if name == "features":
            yield from ((f"features.{inner}", stage) for inner, stage in child.named_children())
        else:
            yield name, child


def _begin(meter: _Meter, name: str, *_: object) -> None:
    meter.stage = name


def _announce_backward(begin: Callable[..., None], _module: nn.Module, _inputs: object, output: object) -> None:
    """Call `begin` once the gradient of the stage's output is there, which is when the stage begins to run backward."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(begin)  # type: ignore[no-untyped-call]

"""A network made ready to be trained: a new classifier, frozen parts, memory, and what the optimizer is given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.models.build import DenseNet, PlainLayer, build_model
from densenet_deploy.training.options import FREEZE_FEATURES, FREEZE_UNTIL, TrainOptions

Norm = nn.BatchNorm1d | nn.BatchNorm2d

_MOMENTUM = 0.9
_COUNTER = ".num_batches_tracked"
_CLASSIFIER = "classifier."


def with_new_classifier(network: DenseNet, classes: int, seed: int) -> DenseNet:
    """Return a copy of `network` whose last linear layer is untrained and has `classes` outputs; `seed` draws it."""
    spec = dataclasses.replace(network.spec, num_classes=classes, head=_head(network))
    fresh = build_model(spec, seed=seed)
    kept = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(_CLASSIFIER)}
    fresh.load_state_dict({**fresh.state_dict(), **kept})
    return fresh


def _head(network: DenseNet) -> str:
    return "classifier" if network.spec.head == "features" else network.spec.head


def save_memory(network: DenseNet) -> None:
    """Let the dense layers of `network` recompute in the backward pass."""
    for layer in network.modules():
        if isinstance(layer, PlainLayer):
            layer.memory_efficient = True


def frozen_parts(network: DenseNet, freeze: str | None) -> tuple[nn.Module, ...]:
    """Return the modules that `freeze` names, after switching the gradients of their weights off.

    Raises:
        UnknownNameError: if `network.features` has no such module.
    """
    parts = list(network.features.named_children())
    if freeze is None:
        chosen = []
    elif freeze == FREEZE_FEATURES:
        chosen = [module for _, module in parts]
    else:
        last = freeze.removeprefix(FREEZE_UNTIL)
        names = [name for name, _ in parts]
        if last not in names:
            raise UnknownNameError.among("module to freeze until", last, names)
        chosen = [module for _, module in parts[: names.index(last) + 1]]
    for module in chosen:
        module.requires_grad_(False)
    return tuple(chosen)


def start_training(network: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Set `network` to train, its `frozen` parts to inference: their norms keep their statistics."""
    network.train()
    for module in frozen:
        module.eval()


def norms_in_training(network: nn.Module) -> tuple[Norm, ...]:
    """Return the norms whose statistics follow the batches."""
    return tuple(module for module in network.modules() if isinstance(module, Norm) and module.training)


def optimizer_of(network: DenseNet, options: TrainOptions, *, is_pretrained: bool) -> Optimizer:
    """Return the optimizer of all weights that are not frozen, in two groups: features, and classifier.

    Raises:
        UsageError: if everything is frozen.
    """
    named = [(name, tensor) for name, tensor in network.named_parameters() if tensor.requires_grad]
    if not named:
        raise UsageError(f"freeze={options.freeze}", "leaves nothing to train", "freeze less")
    head = [tensor for name, tensor in named if name.startswith(_CLASSIFIER)]
    body = [tensor for name, tensor in named if not name.startswith(_CLASSIFIER)]
    rate, head_rate = options.learning_rates(is_pretrained=is_pretrained)
    groups = [{"params": body, "lr": rate}, {"params": head, "lr": head_rate}]
    if options.optimizer == "adamw":
        return AdamW(groups, weight_decay=options.weight_decay)
    return SGD(groups, lr=rate, momentum=_MOMENTUM, nesterov=True, weight_decay=options.weight_decay)


def weights_in(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights and statistics by name, without the batch counters of norms; they share memory."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_COUNTER)}


def copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


def first_non_finite(network: nn.Module) -> str | None:
    """Return the name of a weight or statistic that holds NaN or Inf; None if all are finite."""
    return next((name for name, tensor in weights_in(network).items() if not torch.isfinite(tensor).all()), None)


class MovingAverage:
    """The exponential moving average of a network's weights and statistics: a += (1 - decay)·(w - a) at every step."""

    def __init__(self, network: DenseNet, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: DenseNet) -> None:
        """Take one step towards the weights of `network`."""
        for average, weight in self._pairs(network):
            average.lerp_(weight, 1 - self._decay)

    def _pairs(self, network: DenseNet) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(weights_in(self.network).values(), weights_in(network).values(), strict=True))

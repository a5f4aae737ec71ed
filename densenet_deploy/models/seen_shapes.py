"""What a run of a DenseNet shows of its feature maps: the shape that each layer made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densenet_deploy.models.build import DenseBlock, DenseNet, PlainLayer, Transition


def seen_shapes(model: DenseNet, image_size: int) -> dict[str, tuple[int, ...]]:
    """Run `model` on one image of its device and return (C, H, W) by name.

    The names are `conv0`, `denseblock1.denselayer1`, …, and `transition1` for what its convolution makes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_hook(_recorder(shapes, name)) for name, module in _watched(model.features).items()
    ]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _watched(features: nn.Sequential) -> dict[str, nn.Module]:
    watched: dict[str, nn.Module] = {"conv0": features.get_submodule("conv0")}
    for name, stage in features.named_children():
        if isinstance(stage, Transition):
            watched[name] = stage.conv
        if isinstance(stage, DenseBlock):
            watched |= {f"{name}.{inner}": layer for inner, layer in stage.named_children()}
    return watched


def first_weights(model: DenseNet) -> dict[str, Tensor]:
    """Return the weights (out, in, kernel, kernel) of every layer's first convolution by `denseblock1.denselayer1`."""
    layers = {name: layer for name, layer in model.features.named_modules() if isinstance(layer, PlainLayer)}
    return {name: layer.conv1.weight.detach() for name, layer in layers.items()}


def _recorder(shapes: dict[str, tuple[int, ...]], name: str) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        assert isinstance(output, Tensor)
        shapes[name] = tuple(output.shape[1:])

    return hook

"""What a run of a network shows: the outputs of its inner modules, the shapes of its maps, its cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densenet_deploy.manifest import Size, sides
from densenet_deploy.models.build import DenseBlock, DenseNet, PlainLayer, Transition


class IntermediateOutputs(nn.Module):
    """Wrap `module` so that it returns the outputs of its innermost modules by name, and its own as `output_name`."""

    def __init__(self, module: nn.Module, output_name: str) -> None:
        super().__init__()
        self.module = module
        self.output_name = output_name

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the module on (N, C, H, W) and return name → tensor, in execution order."""
        innermost = {name: inner for name, inner in self.module.named_modules() if not any(inner.children())}
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            outputs[name] = output.clone()  # at once: an in-place ReLU would overwrite its input

        with _watched(innermost, keep):
            result = self.module(images)
        return {**outputs, self.output_name: result}


def traced_shapes(model: DenseNet, image_size: Size) -> dict[str, tuple[int, ...]]:
    """Run `model` on one image of its device and return (C, H, W) by name.

    The names are `conv0`, `denseblock1.denselayer1`, …, and `transition1` for what its convolution makes.
    """
    watched: dict[str, nn.Module] = {"conv0": model.features.get_submodule("conv0")}
    for name, stage in model.features.named_children():
        if isinstance(stage, Transition):
            watched[name] = stage.conv
        if isinstance(stage, DenseBlock):
            watched |= {f"{name}.{inner}": layer for inner, layer in stage.named_children()}
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    device = next(model.parameters()).device
    with _watched(watched, keep), torch.inference_mode():
        model.eval()(torch.zeros(1, model.spec.in_channels, *sides(image_size), device=device))
    return shapes


def first_weights(model: DenseNet) -> dict[str, Tensor]:
    """Return the weights (out, in, kernel, kernel) of every layer's first convolution by `denseblock1.denselayer1`."""
    layers = {name: layer for name, layer in model.features.named_modules() if isinstance(layer, PlainLayer)}
    return {name: layer.conv1.weight.detach() for name, layer in layers.items()}


def counted_cost(module: nn.Module, image_size: Size, channels: int = 3) -> tuple[int, int]:
    """Return the parameters of `module`, which must be on the meta device, and its MACs for one image.

    MACs are those of convolutions and matrix products, as in `analysis.cost`: one for each use of a weight.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module.eval()(torch.empty(1, channels, *sides(image_size), device="meta"))
    return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() // 2


@contextlib.contextmanager
def _watched(modules: Mapping[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `keep` with the name and the output of each of `modules` while the block runs."""

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                keep(name, output)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

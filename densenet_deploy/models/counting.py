"""Parameters and multiply-accumulates of any image network, counted while it runs on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def counted_cost(module: nn.Module, image_size: int) -> tuple[int, int]:
    """Return the parameters of `module`, which must be on the meta device, and its MACs for one image.

    MACs are the uses of the weights of convolutions and linear layers, as in `analysis.cost`: one for each output
    position of a channel.
    """
    macs = 0

    def add(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(layer.weight, Tensor)
        macs += layer.weight.numel() * (output.numel() // output.shape[1])

    handles = [
        layer.register_forward_hook(add) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.inference_mode():
            module.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return sum(parameter.numel() for parameter in module.parameters()), macs

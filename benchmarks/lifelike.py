"""Networks with random weights that are as expensive to run as trained ones.

BatchNormalization in an untrained DenseNet is an identity: mean 0, variance 1, γ = 1, β = 0. Folded into a convolution
it leaves a bias of zeros, which compilers drop together with the addition. Here γ and β are drawn at random, and mean
and variance are measured on images, so that every BatchNormalization shifts its channels as in a trained network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from densenet_deploy.workflows.load import load


def save_lifelike(variant: str, images: Iterable[np.ndarray], path: Path, seed: int = 0) -> None:
    """Write the weights of `variant` as a `.pth`, with statistics measured on `images`, each (N, 3, H, W) float32."""
    torch.manual_seed(seed)
    model = load(variant).module
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for batch in images:
            model(torch.from_numpy(batch))
    torch.save(model.state_dict(), path)

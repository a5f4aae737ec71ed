"""A small DenseNet whose weights and batch statistics are all different, so that every mix-up shows."""

import pytest
import torch

from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.variants.spec import DenseNetSpec
from tests.exported_networks import exported

__all__ = ["exported"]


@pytest.fixture
def model() -> DenseNet:
    """Five classes, 32 pixels, an architecture without a name."""
    model = build_model(
        DenseNetSpec(growth_rate=4, blocks=(2, 3), init_features=8, stem="cifar", num_classes=5), seed=3
    )
    generator = torch.Generator().manual_seed(4)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model

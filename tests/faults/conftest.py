"""What the cases share: commands in an empty folder, an image, and a small network's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_deploy.models.build import DenseNet, build_model
from densenet_deploy.variants.spec import DenseNetSpec
from tests.faults.harness import Commands


@pytest.fixture
def commands(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands that run in an empty folder; what native code prints counts as printed."""
    monkeypatch.chdir(tmp_path)
    return Commands(tmp_path, capfd)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def network() -> DenseNet:
    """Five classes, 32 pixels, an architecture without a name."""
    return build_model(DenseNetSpec(growth_rate=4, blocks=(2, 3), init_features=8, stem="cifar", num_classes=5), seed=3)


@pytest.fixture
def state(network: DenseNet) -> dict[str, torch.Tensor]:
    """A copy of its weights, to be corrupted."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}

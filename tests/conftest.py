"""What tests share: small real models, each made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.facts import Architecture
from densenet_deploy.workflows.export import export
from tests.exported_networks import exported

__all__ = ["exported"]

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

TINY = Architecture(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar")


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DenseNet for 32x32 images and 10 classes, exported by the product."""
    folder = tmp_path_factory.mktemp("tiny")
    return export(architecture=TINY, num_classes=10, out=folder / "tiny.onnx").path


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits model, exported by the product."""
    folder = tmp_path_factory.mktemp("digits")
    return export(DIGITS / "densenet_digits.safetensors", out=folder / "digits.onnx").path

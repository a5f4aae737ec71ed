"""What tests share: small real models, each made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.facts import Architecture
from densenet_deploy.workflows.export import ExportTarget, export_onnx
from densenet_deploy.workflows.load import ModelRequest
from tests.exported_networks import exported

__all__ = ["exported"]

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

TINY = Architecture(growth_rate=4, blocks=(2, 2), init_features=8, bn_size=2, stem="cifar")


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DenseNet for 32x32 images and 10 classes, exported by the product."""
    folder = tmp_path_factory.mktemp("tiny")
    request = ModelRequest(architecture=TINY, num_classes=10)
    return export_onnx(request, ExportTarget(out=str(folder / "tiny.onnx"))).onnx


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits model, exported by the product."""
    folder = tmp_path_factory.mktemp("digits")
    request = ModelRequest(weights=str(DIGITS / "densenet_digits.safetensors"))
    return export_onnx(request, ExportTarget(out=str(folder / "digits.onnx"))).onnx

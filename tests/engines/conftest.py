"""Graphs to build: the tiny network in float16, and the same at a fixed batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.workflows.cast import CastOptions, cast_model
from densenet_deploy.workflows.export import ExportTarget, export_onnx
from densenet_deploy.workflows.load import ModelRequest
from tests.conftest import TINY


@pytest.fixture(scope="session")
def tiny_fp16(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "tiny.fp16.onnx"
    path.write_bytes(cast_model(tiny_onnx, CastOptions("fp16")).data)
    return path


@pytest.fixture(scope="session")
def tiny_batch_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    request = ModelRequest(architecture=TINY, num_classes=10)
    return export_onnx(request, ExportTarget(batch=4, out=str(folder / "tiny4.onnx"))).onnx

"""Graphs to build: the tiny network in float16, and the same at a fixed batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.workflows.cast import CastOptions, cast
from densenet_deploy.workflows.export import ExportOptions, export
from tests.conftest import TINY


@pytest.fixture(scope="session")
def tiny_fp16(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "tiny.fp16.onnx"
    return cast(tiny_onnx, CastOptions("fp16"), out=path).path


@pytest.fixture(scope="session")
def tiny_batch_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    return export(options=ExportOptions(batch=4), architecture=TINY, num_classes=10, out=folder / "tiny4.onnx").path

"""Files that several workflows start from: a checkpoint, images in class folders, another library's export."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_deploy.workflows.load import load
from tests.conftest import TINY


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny architecture under another seed, as torch saves them."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(load(architecture=TINY, num_classes=10, seed=5).module.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each of ten classes, all holding the same image."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for index in range(10):
        (folder / str(index)).mkdir()
        Image.fromarray(pixels).save(folder / str(index) / "same.png")
    return folder


@pytest.fixture(scope="session")
def torchvision_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's own DenseNet, written by PyTorch's legacy exporter: no facts of ours in it."""
    from torchvision.models import DenseNet

    torch.manual_seed(0)
    module = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10).eval()
    path = tmp_path_factory.mktemp("torchvision") / "third_party.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the legacy exporter announces its end
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 32, 32),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_axes={"pixels": {0: "n"}, "scores": {0: "n"}},
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # leaves it to us to fold the norms
        )
    return path

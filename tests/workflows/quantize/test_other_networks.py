"""Networks that are not DenseNets quantize too, whatever their heads compute on the side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class ResNet(nn.Module):
    """A small ResNet whose head reshapes by sizes that it reads from the tensor: Shape, Concat and Reshape of int64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = ResidualBlock(8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.block(self.stem(x).relu()).mean((2, 3), keepdim=True)
        return self.classifier(pooled.reshape(x.size(0), -1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet().eval()


@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "tensorrt"])
def test_a_resnet_quantizes(network, recipe):
    rng = np.random.default_rng(0)
    options = QuantizeOptions(recipe=recipe, never_slower=False)
    images = (rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(32))
    report = quantize(network, images, options, image_size=32).report
    assert report.layers_int8 >= 2
    assert report.parity.sqnr_db > 20  # 8 bits in three layers cost about 30 dB


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [None, (24, 32)])
def test_arrays_say_the_size_of_images_for_a_graph_that_takes_any(network, image_size):
    size = {"height": torch.export.Dim("height", min=8, max=64), "width": torch.export.Dim("width", min=8, max=64)}
    axes = ({0: torch.export.Dim("batch"), 2: size["height"], 3: size["width"]},)
    program = torch.onnx.export(network, (torch.zeros(2, 3, 32, 40),), dynamo=True, dynamic_shapes=axes, verbose=False)
    inputs = np.random.default_rng(0).standard_normal((32, 3, 24, 32), np.float32)
    options = QuantizeOptions(recipe="onnxruntime", never_slower=False)
    stated = {} if image_size is None else {"image_size": image_size}
    report = quantize(program.model_proto, inputs, options, **stated).report
    assert report.input.shape == (3, 24, 32)
    assert "image_size" not in report.input.assumed
    assert report.layers_int8 >= 2

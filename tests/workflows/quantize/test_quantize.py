"""What `quantize` refuses, what is done with its results, and networks that are not DenseNets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from densenet_deploy.errors import DataError, GateError, ModelFileError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.quantization.observers.percentile import PercentileOptions
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.quantize.layer_choice import Speed
from densenet_deploy.workflows.quantize.options import QuantizeOptions, options_of
from densenet_deploy.workflows.quantize.preparation import weight_bits
from densenet_deploy.workflows.quantize.quantize import _LayerChoice, _require_int8, quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.mark.parametrize(
    ("speed", "word"),
    [
        (None, "no convolution"),
        (Speed(2.0, 1.9, 1.05, (1.0, 1.1)), "no convolution"),
        (Speed(2.0, 2.5, 0.8, (0.7, 0.9), ("stem",)), "0.80 x float"),
        (Speed(2.0, 1.9, 1.05, (1.0, 1.1), ("stem",)), "each of its blocks"),
    ],
)
def test_a_float_file_is_not_called_int8(speed: Speed | None, word: str) -> None:
    choice = _LayerChoice(frozenset(), (), speed)
    _require_int8(["conv0"], choice, "net.onnx")
    with pytest.raises(GateError) as caught:
        _require_int8([], choice, "net.onnx")
    assert (caught.value.subject, word in caught.value.why) == ("net.onnx", True)


def test_options_of_an_observer_come_from_its_words_or_a_file(tmp_path) -> None:
    named = options_of("openvino", {"observer": "percentile"}, ["percentile=99.5"])
    assert (named.recipe, named.observer_options.percentile) == ("openvino", 99.5)
    assert options_of("openvino", {"observer": "percentile"}).observer_options is None
    file = tmp_path / "mine.toml"
    file.write_text('base = "openvino"\nobserver = "percentile"\n[observer-options]\npercentile = 99.0\n')
    assert options_of(str(file), {}).observer_options.percentile == 99.0
    assert options_of(str(file), {}, ["percentile=98"]).observer_options.percentile == 98


@pytest.fixture(scope="module")
def int8(tiny_onnx, tmp_path_factory) -> Path:
    options = QuantizeOptions(recipe="onnxruntime", samples=32, never_slower=False)
    return quantize(tiny_onnx, SAMPLES, options, out=tmp_path_factory.mktemp("int8")).path


def test_a_backend_that_it_was_not_written_for_says_which_one_it_was(int8):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    with pytest.raises(ModelFileError):
        open_runner(int8, "openvino")


def test_comparing_it_on_other_than_images_says_so(int8, tiny_onnx):
    on_noise = compare(tiny_onnx, int8, options=CompareOptions(samples=2))
    on_images = compare(tiny_onnx, int8, SAMPLES, CompareOptions(samples=2))
    assert any("--data" in note for note in on_noise.notes)
    assert not any("--data" in note for note in on_images.notes)


@pytest.mark.slow
def test_a_quantized_file_is_refused(tiny_onnx, tmp_path):
    int8 = quantize(tiny_onnx, SAMPLES, QuantizeOptions(never_slower=False, samples=32), out=tmp_path).report
    with pytest.raises(ModelFileError) as caught:
        quantize(int8.onnx, SAMPLES)
    assert caught.value.subject == str(int8.onnx)


def test_too_few_images_are_refused(tiny_onnx, tmp_path):
    with pytest.raises(DataError):
        quantize(tiny_onnx, SAMPLES, QuantizeOptions(samples=31), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_in_the_way_survives(tiny_onnx, tmp_path):
    foreign = tmp_path / "x.onnx"
    foreign.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        quantize(tiny_onnx, SAMPLES, out=foreign)
    assert foreign.read_bytes() == b"mine"


def test_words_and_numbers_are_checked(tiny_onnx):
    with pytest.raises(UnknownNameError) as caught:
        quantize(tiny_onnx, SAMPLES, QuantizeOptions(never_slower=False, recipe="openvin"))
    assert "'openvino'" in caught.value.fix
    with pytest.raises(UnknownNameError) as caught:
        QuantizeOptions(weights="per-chanel")
    assert "'per-channel'" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        QuantizeOptions(alpha=1.5)
    assert caught.value.subject == "alpha=1.5"


def test_observers_and_their_options_are_checked_at_once():
    with pytest.raises(UnknownNameError):
        QuantizeOptions(observer="percentil")
    with pytest.raises(UsageError):
        QuantizeOptions(observer="mse", observer_options=PercentileOptions())
    options = QuantizeOptions(observer="percentile", observer_options=PercentileOptions(percentile=99.9))
    assert options.observer_options == PercentileOptions(percentile=99.9)


def test_seven_bits_only_where_kernels_saturate():
    assert weight_bits(frozenset({"sse2", "avx2"})) == 7
    assert weight_bits(frozenset({"sse2", "avx2", "avx512_vnni"})) == 8
    assert weight_bits(frozenset({"asimd"})) == 8


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["onnxruntime", "openvino", "tensorrt"])
def test_a_resnet_quantizes(network, recipe):
    rng = np.random.default_rng(0)
    options = QuantizeOptions(recipe=recipe, never_slower=False)
    images = (rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(32))
    made = quantize(network, images, options, image_size=32)
    report, stored = made.report, [onnx.numpy_helper.to_array(tensor) for tensor in made.onnx.graph.initializer]
    assert report.layers_int8 >= 2
    largest = max(np.abs(array.astype(int)).max() for array in stored if array.dtype == np.int8 and array.ndim == 4)
    assert (report.weight_bits, largest) == ((8, 127) if recipe == "tensorrt" or weight_bits() == 8 else (7, 63))
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

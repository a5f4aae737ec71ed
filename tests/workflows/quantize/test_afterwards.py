"""An INT8 file in the workflows after `quantize`."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.compare import CompareOptions, compare
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


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

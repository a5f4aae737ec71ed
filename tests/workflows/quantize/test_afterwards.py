"""An INT8 file on the roads that come after `quantize`."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.errors import ModelFileError
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.quantize import quantize
from densenet_deploy.workflows.validate import ValidateOptions, validate
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.fixture(scope="module")
def int8(tiny_onnx, tmp_path_factory) -> Path:
    options = QuantizeOptions(recipe="onnxruntime", samples=32, never_slower=False)
    return quantize(tiny_onnx, SAMPLES, options, f"{tmp_path_factory.mktemp('int8')}/").onnx


def test_a_backend_that_it_was_not_written_for_says_which_one_it_was(int8):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    with pytest.raises(ModelFileError, match="written for ONNX Runtime: use the backend onnxruntime"):
        open_runner(int8, "openvino")


def test_comparing_it_on_other_than_images_says_so(int8, tiny_onnx):
    on_noise = validate(tiny_onnx, int8, ValidateOptions(samples=2))
    on_images = validate(tiny_onnx, int8, ValidateOptions(samples=2, data=SAMPLES))
    assert any("--data" in note for note in on_noise.notes)
    assert not any("--data" in note for note in on_images.notes)

"""Calibration data beside what was stated, or is assumed, about the images."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import about_range
from densenet_deploy.workflows.quantize.quantize import quantize

PIXELS = Preprocessing(image_size=2, resize=2, mean=(0.0, 0.0, 0.0), std=(1 / 256,) * 3)
"""Images from 0 to 256."""


def _about(low: float, high: float, *, is_stated: bool, kind: str = "array") -> str | None:
    values = np.full((3, 3, 2, 2), low, np.float32)
    values[1, 2, 0, 1] = high
    source = {"array": values, "list": list(values)}[kind]
    data = open_calibration_data(source, PIXELS, check_values=False)
    assert len(list(data)) == 3
    return about_range(data, is_stated=is_stated)


HOLDS = [(0, 256), (-256, 512), (0, 5.125), (100, 105.125), (-256, 0)]
CONTRADICTS = [(-256.1, 0), (0, 512.1), (-1024, 1024), (0, 1), (0, 5.11)]


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize(("low", "high"), HOLDS)
@pytest.mark.parametrize("is_stated", [True, False])
def test_values_about_as_wide_as_those_of_images_say_nothing(low, high, is_stated, kind):
    """Up to one width of the range beyond it, and filling a fiftieth of it."""
    assert _about(low, high, is_stated=is_stated, kind=kind) is None


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize(("low", "high"), CONTRADICTS)
def test_values_that_a_stated_range_cannot_give_are_refused(low, high, kind):
    with pytest.raises(DataError) as caught:
        _about(low, high, is_stated=True, kind=kind)
    assert caught.value.subject == "calibration"
    assert f"{low:.4g} to {high:.4g}" in str(caught.value)
    assert "0 to 256" in str(caught.value)


@pytest.mark.parametrize(("low", "high"), CONTRADICTS)
def test_where_the_range_is_assumed_the_values_are_what_counts(low, high):
    note = _about(low, high, is_stated=False)
    assert note is not None
    assert f"{low:.4g} to {high:.4g}" in note
    assert "0 to 256" in note


def test_images_are_prepared_as_stated():
    pixels = np.zeros((3, 2, 2, 3), np.uint8)
    data = open_calibration_data(pixels, PIXELS)
    assert len(list(data)) == 3
    assert about_range(data, is_stated=True) is None


def _wide(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (32, 3, 32, 32)).astype(np.float32)


def test_quantize_refuses_an_array_far_from_the_stated_range(tiny_onnx):
    """Pixels were stated, and values around zero are given: either may be wrong, and so would be all measurements."""
    with pytest.raises(DataError):
        quantize(tiny_onnx, _wide(-1, 1), QuantizeOptions(never_slower=False), mean=0.0, std=1 / 255)


def test_quantize_uses_the_range_of_an_array_and_says_what_that_means(tiny_onnx):
    options = QuantizeOptions("onnxruntime", never_slower=False)
    result = quantize(tiny_onnx, _wide(0, 2550), options, mean=0.0, std=1 / 255 / 10)
    assert result.report.parity.sqnr_db > 20
    scale = next(t for t in result.onnx.graph.initializer if t.name.startswith("input.codes_scale"))
    assert np.frombuffer(scale.raw_data, np.float32)[0] == pytest.approx(2550 * 1.1 / 255, rel=1e-3)

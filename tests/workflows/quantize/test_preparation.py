"""Calibration data beside what was stated about the images, and the outputs of the float model, which are kept."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.errors import DataError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.quantization.calibration_data import open_calibration_data
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize import preparation
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.quantize.preparation import FloatOutputs, about_range
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


SAMPLES = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32) for seed in range(7)]


class Counted(list):
    """Samples that count how often they are read from the first on, and how many in all."""

    passes = read = 0

    def __iter__(self):
        self.passes += 1
        for sample in super().__iter__():
            self.read += 1
            yield sample


@pytest.fixture(scope="module")
def model(tiny_onnx):
    return load(tiny_onnx)


@pytest.fixture(scope="module")
def own(model) -> list[np.ndarray]:
    with model.runner("onnxruntime", "cpu") as runner:
        return [runner.run(sample)["logits"] for sample in SAMPLES]


def _logits(floats: FloatOutputs, count: int) -> list[np.ndarray]:
    return [outputs["logits"] for outputs in floats.first(count)]


def test_the_model_runs_when_asked_and_each_sample_once(model, own):
    data = Counted(SAMPLES)
    floats = FloatOutputs(model, data)
    assert data.passes == 0
    np.testing.assert_allclose(np.concatenate(_logits(floats, 3)), np.concatenate(own[:3]), atol=1e-5)
    again = _logits(floats, 7)
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(own), atol=1e-5)
    assert data.passes == 2, "once for three, once for the other four"
    assert all(a is b for a, b in zip(again, _logits(floats, 9), strict=True)), "and there are no more than seven"


def test_outputs_seen_by_calibration_are_taken_if_the_model_gives_the_same(model, own):
    """A noise of 1e-4 of the values is 80 dB below them; 60 dB are the limit."""
    seen = [{"logits": logits * np.float32(1.0001)} for logits in own]
    data = Counted(SAMPLES)
    floats = FloatOutputs(model, data, seen)
    assert all(found is given["logits"] for found, given in zip(_logits(floats, 5), seen, strict=False))
    assert (data.passes, data.read) == (1, 4), "four were run"
    _logits(floats, 7)
    assert data.passes == 1


@pytest.mark.parametrize("factor", [1.002, np.nan])
def test_outputs_that_the_model_does_not_give_are_not_taken(model, own, factor, caplog):
    floats = FloatOutputs(model, SAMPLES, [{"logits": logits * np.float32(factor)} for logits in own])
    with caplog.at_level("INFO", preparation.__name__):
        np.testing.assert_allclose(np.concatenate(_logits(floats, 7)), np.concatenate(own), atol=1e-5)
    (message,) = (record.getMessage() for record in caplog.records if record.name == preparation.__name__)
    assert message.startswith("logits differs")


def test_two_who_ask_at_the_same_time_get_the_same(model, own):
    floats = FloatOutputs(model, SAMPLES)
    for one, other in zip(floats.first(4), floats.first(4), strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    np.testing.assert_allclose(np.concatenate(_logits(floats, 7)), np.concatenate(own), atol=1e-5)


def test_what_does_not_fit_is_run_again(model, own, monkeypatch):
    assert preparation.MOST_BYTES == 67_108_864
    monkeypatch.setattr(preparation, "MOST_BYTES", 2 * own[0].nbytes)
    floats = FloatOutputs(model, SAMPLES)
    first, second = _logits(floats, 4), _logits(floats, 4)
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, False, False]
    np.testing.assert_allclose(np.concatenate(second), np.concatenate(own[:4]), atol=1e-5)

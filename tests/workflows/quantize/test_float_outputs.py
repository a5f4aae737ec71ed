"""The outputs of the float model: what calibration saw, if the model itself gives the same, else its own run."""

from __future__ import annotations

import numpy as np
import pytest

from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.quantize import float_outputs
from densenet_deploy.workflows.quantize.float_outputs import FloatOutputs

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
    with caplog.at_level("INFO", float_outputs.__name__):
        np.testing.assert_allclose(np.concatenate(_logits(floats, 7)), np.concatenate(own), atol=1e-5)
    (message,) = (record.getMessage() for record in caplog.records if record.name == float_outputs.__name__)
    assert message.startswith("logits differs")


def test_two_who_ask_at_the_same_time_get_the_same(model, own):
    floats = FloatOutputs(model, SAMPLES)
    for one, other in zip(floats.first(4), floats.first(4), strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    np.testing.assert_allclose(np.concatenate(_logits(floats, 7)), np.concatenate(own), atol=1e-5)


def test_what_does_not_fit_is_run_again(model, own, monkeypatch):
    assert float_outputs.MOST_BYTES == 67_108_864
    monkeypatch.setattr(float_outputs, "MOST_BYTES", 2 * own[0].nbytes)
    floats = FloatOutputs(model, SAMPLES)
    first, second = _logits(floats, 4), _logits(floats, 4)
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, False, False]
    np.testing.assert_allclose(np.concatenate(second), np.concatenate(own[:4]), atol=1e-5)

"""Predictions for files, by hand and by the product."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densenet_deploy.errors import ImageError, UsageError
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.classify import classify_files

UNTRAINED = "untrained weights (random, seed 0): predictions mean nothing"


def test_predictions_are_those_of_the_runner(tiny_onnx, images):
    path = images / "0" / "same.png"
    report = classify_files(tiny_onnx, [path, path], top_k=3)
    with open_runner(tiny_onnx) as runner:
        assert runner.manifest is not None
        logits = runner.run({"input": prepare_batch([load_image(path)], runner.manifest.preprocessing)})["logits"][0]
    scores = np.exp(logits - logits.max(), dtype=np.float64)
    scores /= scores.sum()
    for _, prediction in report.predictions:
        assert [score.index for score in prediction.top] == list(np.argsort(-logits)[:3])
        # softmax in float64 of the same float32 logits, up to batching
        np.testing.assert_allclose([s.score for s in prediction.top], np.sort(scores)[::-1][:3], rtol=1e-5)


def test_the_predictions_are_plain_json_and_readable(tiny_onnx, images):
    path = images / "0" / "same.png"
    report = classify_files(tiny_onnx, [path], top_k=2)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (prediction,) = facts["predictions"]
    assert prediction["file"] == str(path)
    assert [set(score) for score in prediction["top"]] == [{"index", "label", "score"}] * 2
    assert (facts["backend"], facts["device"], facts["precision"]) == (report.placement.backend, "cpu", "fp32")
    assert UNTRAINED in facts["notes"]
    assert report.to_text().startswith(str(path))


def test_a_third_party_model_reports_what_was_assumed(torchvision_onnx, images):
    report = classify_files(torchvision_onnx, [images / "0" / "same.png"])
    assert any("does not say how to prepare images" in note for note in report.notes)


def test_a_file_that_is_not_an_image_is_an_error(tiny_onnx, tmp_path):
    page = tmp_path / "page.jpg"
    page.write_text("<html>404</html>")
    with pytest.raises(ImageError) as caught:
        classify_files(tiny_onnx, [page])
    assert caught.value.subject == str(page)


def test_a_number_out_of_range_is_a_usage_error(tiny_onnx):
    with pytest.raises(UsageError) as caught:
        classify_files(tiny_onnx, [], top_k=0)
    assert caught.value.subject == "top-k=0"

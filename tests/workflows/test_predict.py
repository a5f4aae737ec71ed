"""Predict: what the runner computes, as ranked classes of each image; a bad image costs only its own prediction."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.batch import BatchJobOptions
from densenet_deploy.workflows.predict import PredictReport, predict


def test_predictions_are_those_of_the_runner(tiny_onnx, images):
    path = images / "0" / "same.png"
    report = predict(tiny_onnx, [path, path], top_k=3)
    with open_runner(tiny_onnx) as runner:
        assert runner.manifest is not None
        logits = runner.run(prepare_batch([load_image(path)], runner.manifest.preprocessing))["logits"][0]
    scores = np.exp(logits - logits.max(), dtype=np.float64)
    scores /= scores.sum()
    for prediction in report.predictions:
        assert [score.index for score in prediction.top] == list(np.argsort(-logits)[:3])
        # softmax in float64 of the same float32 logits, up to batching
        np.testing.assert_allclose([s.score for s in prediction.top], np.sort(scores)[::-1][:3], rtol=1e-5)


def test_the_report_is_plain_json_reads_itself_and_is_readable(tiny_onnx, images):
    path = images / "0" / "same.png"
    report = predict(tiny_onnx, path, top_k=2)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (prediction,) = facts["predictions"]
    assert prediction["file"] == str(path)
    assert [set(score) for score in prediction["top"]] == [{"index", "label", "score"}] * 2
    assert (facts["backend"], facts["device"], facts["precision"]) == (report.backend, "cpu", "fp32")
    assert any("untrained" in note for note in facts["notes"])
    assert PredictReport.from_json(facts) == report
    assert str(report).startswith(str(path))
    assert str(path) in report._repr_html_()


def test_folders_and_patterns_name_their_images(tiny_onnx, images):
    assert len(predict(tiny_onnx, images).predictions) == 10
    assert len(predict(tiny_onnx, [images / "3", f"{images}/[45]/*.png"]).predictions) == 3


@pytest.fixture
def one_bad(images: Path, tmp_path: Path) -> list[Path]:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    return [images / "0" / "same.png", bad, images / "1" / "same.png"]


def test_a_bad_image_costs_only_its_own_prediction(tiny_onnx, one_bad):
    report = predict(tiny_onnx, one_bad)
    assert [bool(prediction.top) for prediction in report.predictions] == [True, False, True]
    assert report.bad == 1
    assert isinstance(report.failure, DataError)
    assert report.failure.subject == str(one_bad[1])
    assert report.to_json()["predictions"][1]["error"]


def test_without_a_bad_image_there_is_no_failure(tiny_onnx, one_bad):
    assert predict(tiny_onnx, one_bad[:1]).failure is None


def test_a_missing_image_is_a_bad_one(tiny_onnx, tmp_path):
    assert predict(tiny_onnx, tmp_path / "gone.png").bad == 1


def test_images_of_a_table_are_predicted(tiny_onnx, images, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(f"file,patient\n{images / '0' / 'same.png'},7\ngone.png,8\n")
    good, gone = predict(tiny_onnx, table).predictions
    assert good == predict(tiny_onnx, images / "0" / "same.png").predictions[0]
    assert (gone.file, gone.top) == (str(tmp_path / "gone.png"), ())


def test_a_job_without_a_place_for_its_rows_is_a_usage_error(tiny_onnx, images):
    with pytest.raises(UsageError) as caught:
        predict(tiny_onnx, images, job=BatchJobOptions())
    assert caught.value.subject == "job"


def test_a_third_party_model_says_what_was_assumed(torchvision_onnx, images):
    assert any("ImageNet" in note for note in predict(torchvision_onnx, images / "0").notes)


def test_top_k_below_one_is_a_usage_error(tiny_onnx):
    with pytest.raises(UsageError) as caught:
        predict(tiny_onnx, [], top_k=0)
    assert caught.value.subject == "top-k=0"


def test_fast_decoding_is_said_and_changes_only_large_jpegs(tiny_onnx, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path / "large.jpg")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "small.png")
    exact, fast = (predict(tiny_onnx, tmp_path, fast_decode=is_fast) for is_fast in (False, True))
    assert (exact.input.fast_decode, fast.to_json()["input"]["fast_decode"]) == (False, True)
    assert [note for note in fast.notes if "fast" in note] == [note for note in fast.notes if note not in exact.notes]
    assert len(fast.notes) == len(exact.notes) + 1
    assert "decoded fast" in str(fast.input)
    (large, small), (large_fast, small_fast) = exact.predictions, fast.predictions
    assert large.top != large_fast.top
    assert small.top == small_fast.top


def test_answers_stay_in_order_while_images_are_decoded_ahead(tiny_onnx, tmp_path):
    """Large images, which take longest to decode, come first."""
    paths = []
    for number, side in enumerate((1500, 900, 40, 700, 33, 34)):
        paths.append(tmp_path / f"{9 - number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)).save(paths[-1])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"text")
    given = [paths[0], bad, *paths[1:], paths[0]]
    report = predict(tiny_onnx, given)
    assert [prediction.file for prediction in report.predictions] == list(map(str, given))
    assert [prediction.error is not None for prediction in report.predictions] == [path == bad for path in given]
    for path, prediction in zip(given, report.predictions, strict=True):
        if path != bad:
            assert prediction == predict(tiny_onnx, path).predictions[0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]

"""Accuracy on class folders and predictions for files, by hand and by the product."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densenet_deploy.errors import DataError, ImageError, UsageError
from densenet_deploy.pipeline.classify import classify_files
from densenet_deploy.pipeline.evaluate import EvaluateOptions, evaluate
from densenet_deploy.runtime.images import load_image
from densenet_deploy.runtime.preprocess import prepare_batch
from densenet_deploy.runtime.runner import open_runner

UNTRAINED = "untrained weights (random, seed 0): predictions mean nothing"


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_one_picture_under_every_class_is_right_once_in_ten_and_near_five_times(tiny_onnx, pictures, batch):
    report = evaluate(tiny_onnx, pictures, EvaluateOptions(batch=batch))
    assert (report.top1, report.top5, report.count) == (0.1, 0.5, 10)


def test_a_checkpoint_is_evaluated_too(checkpoint, pictures):
    report = evaluate(checkpoint, pictures)
    assert (report.top1, report.placement.backend) == (0.1, "torch")
    assert report.notes == ()


def test_the_evaluation_is_plain_json_and_readable(tiny_onnx, pictures):
    report = evaluate(tiny_onnx, pictures)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (facts["top1"], facts["top5"], facts["count"]) == (0.1, 0.5, 10)
    assert facts["images_per_second"] == pytest.approx(10 / facts["seconds"])
    assert facts["notes"] == [UNTRAINED]
    assert "top-1 10.00%, top-5 50.00% on 10 pictures" in report.to_text()


@pytest.fixture
def one_broken(pictures, tmp_path):
    """The same folders, with one file that is no picture."""
    for folder in pictures.iterdir():
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / "same.png").write_bytes((folder / "same.png").read_bytes())
    (tmp_path / "3" / "page.jpg").write_text("<html>404</html>")
    return tmp_path


def test_a_broken_picture_ends_it_unless_it_was_allowed_for(tiny_onnx, one_broken):
    with pytest.raises(DataError):
        evaluate(tiny_onnx, one_broken)
    report = evaluate(tiny_onnx, one_broken, EvaluateOptions(max_bad=1))
    assert (report.count, [bad.path.name for bad in report.bad]) == (10, ["page.jpg"])
    assert report.to_json()["bad"][0]["file"].endswith("page.jpg")
    assert "page.jpg" in report.to_text()


@pytest.mark.parametrize("count", [3, 11])
def test_without_labels_there_must_be_as_many_folders_as_classes(tiny_onnx, pictures, tmp_path, count):
    for index in range(count):
        (tmp_path / f"{index:02}").mkdir()
        (tmp_path / f"{index:02}" / "same.png").write_bytes((pictures / "0" / "same.png").read_bytes())
    with pytest.raises(DataError, match=f"has {count} class folders, the model 10 classes"):
        evaluate(tiny_onnx, tmp_path)


def test_predictions_are_those_of_the_runner(tiny_onnx, pictures):
    path = pictures / "0" / "same.png"
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


def test_the_predictions_are_plain_json_and_readable(tiny_onnx, pictures):
    path = pictures / "0" / "same.png"
    report = classify_files(tiny_onnx, [path], top_k=2)
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (prediction,) = facts["predictions"]
    assert prediction["file"] == str(path)
    assert [set(score) for score in prediction["top"]] == [{"index", "label", "score"}] * 2
    assert (facts["backend"], facts["device"], facts["precision"]) == (report.placement.backend, "cpu", "fp32")
    assert UNTRAINED in facts["notes"]
    assert report.to_text().startswith(str(path))


def test_a_strangers_model_says_what_was_assumed(torchvision_onnx, pictures):
    report = classify_files(torchvision_onnx, [pictures / "0" / "same.png"])
    assert any("does not say how to prepare pictures" in note for note in report.notes)


def test_what_is_no_picture_is_an_error(tiny_onnx, one_broken):
    with pytest.raises(ImageError, match=r"page\.jpg"):
        classify_files(tiny_onnx, [one_broken / "3" / "page.jpg"])


def test_numbers_out_of_range_are_usage_errors(tiny_onnx):
    with pytest.raises(UsageError, match="top-k=0"):
        classify_files(tiny_onnx, [], top_k=0)
    for wrong in ({"batch": 0}, {"max_bad": -1}):
        with pytest.raises(UsageError, match="out of range"):
            EvaluateOptions(**wrong)

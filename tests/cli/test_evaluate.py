"""`evaluate` on the command line: classes from a file, a second model, and invalid options."""

from __future__ import annotations

import pytest

from tests.cli.test_contract import run_failing, run_json
from tests.conftest import DIGITS
from tests.workflows.evaluation.colours import painted


@pytest.fixture
def flat(tmp_path):
    """A flat folder of twenty digits and the file with their classes."""
    (tmp_path / "flat").mkdir()
    lines = []
    for path in sorted((DIGITS / "held_out").glob("*/*.png"))[::18]:
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
        lines.append(f"{path.name} {path.parent.name}\n")
    (tmp_path / "truth.txt").write_text("".join(lines))
    return tmp_path


def test_evaluate_with_ground_truth_and_a_second_model(capsys, digits_onnx, flat):
    words = ["--data", flat / "flat", "--ground-truth", flat / "truth.txt", "--decode-threads", "1"]
    words += ["--against", digits_onnx, "--against-backend", "openvino"]
    answer = run_json(capsys, "evaluate", digits_onnx, *words)
    assert answer["count"] == 20
    assert answer["top1"] >= 0.9
    assert answer["images_per_second"] > 0
    assert answer["against"]["backend"] == "openvino"
    assert answer["against"]["top1_agreement"] == 1.0
    assert sum(entry["count"] for entry in answer["confusion"]) == 20


def test_a_broken_image_is_exit_3_unless_it_is_allowed_for(capsys, digits_onnx, flat):
    broken = sorted((flat / "flat").iterdir())[0]
    broken.write_text("<html>")
    words = ["evaluate", digits_onnx, "--data", flat / "flat", "--ground-truth", flat / "truth.txt"]
    code, line = run_failing(capsys, *words)
    assert code == 3
    assert broken.name in line
    answer = run_json(capsys, *words, "--max-bad", "1")
    assert answer["count"] == 19
    assert [bad["file"] for bad in answer["bad"]] == [str(broken)]


def test_failures_have_their_codes(capsys, digits_onnx, flat):
    words = ["evaluate", digits_onnx, "--data", flat / "flat"]
    assert run_failing(capsys, *words)[0] == 3  # no class folders
    assert run_failing(capsys, *words, "--ground-truth", digits_onnx)[0] == 3
    assert run_failing(capsys, *words, "--against-backend", "openvino")[0] == 2
    assert run_failing(capsys, *words, "--decode-threads", "0")[0] == 2


def _written(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def chest(tmp_path):
    """Four images of one colour each, as a model with a CIFAR stem takes them, and their labels."""
    painted(tmp_path, {"a.png": (255, 0, 0), "b.png": (0, 255, 0), "c.png": (0, 0, 255), "d.png": (9, 9, 9)})
    return tmp_path


TEN = tuple(f"finding {number}" for number in range(10))


def test_labels_of_a_csv_on_the_command_line(capsys, tiny_onnx, chest):
    rows = (f"{name}.png," + ",".join(str(int(name == "abcd"[place % 4])) for place in range(10)) for name in "abcd")
    data = _written(chest / "val.csv", "file," + ",".join(TEN[::-1]), *rows)
    labels = _written(chest / "labels.txt", *TEN)
    words = ["evaluate", tiny_onnx, "--data", data, "--task", "multilabel", "--labels", labels]
    answer = run_json(capsys, *words)
    assert (answer["task"], answer["count"], answer["labels"]) == ("multilabel", 4, list(TEN))
    assert "top1" not in answer
    assert [(one["label"], one["positives"]) for one in answer["by_label"]] == [(name, 1) for name in TEN]
    assert answer["auroc"] == pytest.approx(sum(one["auroc"] for one in answer["by_label"]) / 10)
    assert 0 <= answer["f1"] <= 1
    assert answer["images_per_second"] > 0


def test_numbers_of_a_csv_on_the_command_line(capsys, tiny_onnx, chest):
    data = _written(chest / "ages.csv", "file," + ",".join("abcdefghij"), "a.png" + ",0" * 10, "b.png" + ",0" * 10)
    answer = run_json(capsys, "evaluate", tiny_onnx, "--data", data, "--task", "regression")
    assert (answer["task"], answer["count"], len(answer["by_output"])) == ("regression", 2, 10)
    assert 0 < answer["mae"] <= answer["rmse"]


@pytest.mark.parametrize(
    ("lines", "task", "culprit"),
    [
        (("file,label", "a.png,0", "gone.png,1"), "multiclass", "line 3, column 'file'"),
        (("file,label", "a.png,10"), "multiclass", "line 2, column 'label'"),
        (("file,a,b", "a.png,0,1"), "multilabel", "line 1"),
        (("file," + ",".join("abcdefghij"), "a.png" + ",0" * 9 + ",old"), "regression", "line 2, column 'j'"),
    ],
)
def test_a_csv_that_does_not_fit_is_exit_3(capsys, tiny_onnx, chest, lines, task, culprit):
    data = _written(chest / "val.csv", *lines)
    code, line = run_failing(capsys, "evaluate", tiny_onnx, "--data", data, "--task", task)
    assert (code, str(data) in line, culprit in line) == (3, True, True)


def test_features_are_exit_3(capsys, tiny_onnx, chest):
    data = _written(chest / "val.csv", "file,label", "a.png,0")
    code, line = run_failing(capsys, "evaluate", tiny_onnx, "--data", data, "--task", "features")
    assert (code, "features" in line, "validate" in line) == (3, True, True)


@pytest.mark.parametrize("words", [("--labels", "two"), ("--task", "multilabel", "--thresholds", "two")])
def test_61_labels_and_thresholds_that_do_not_match_the_outputs_are_exit_2(capsys, tiny_onnx, chest, words):
    data = _written(chest / "val.csv", "file,label", "a.png,0")
    two = _written(chest / "two.txt", "0.25", "0.75")
    code, line = run_failing(
        capsys, "evaluate", tiny_onnx, "--data", data, *(two if word == "two" else word for word in words)
    )
    assert (code, "2 " in line, "10" in line) == (2, True, True)


@pytest.mark.parametrize("option", ["--mean", "--std"])
def test_61_means_that_do_not_match_the_channels_are_exit_2(capsys, tiny_onnx, chest, option):
    data = _written(chest / "val.csv", "file,label", "a.png,0")
    code, line = run_failing(capsys, "evaluate", tiny_onnx, "--data", data, option, "0.5,0.5")
    assert (code, option.removeprefix("--") in line) == (2, True)


def test_a_threshold_that_is_not_a_number_is_exit_3(capsys, tiny_onnx, chest):
    data = _written(chest / "val.csv", "file,label", "a.png,0")
    thresholds = _written(chest / "thresholds.txt", "0.5", "half")
    words = ["--data", data, "--task", "multilabel", "--thresholds", thresholds]
    code, line = run_failing(capsys, "evaluate", tiny_onnx, *words)
    assert (code, str(thresholds) in line, "half" in line) == (3, True, True)

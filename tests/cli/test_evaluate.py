"""`evaluate` on the command line: classes from a file, a second model, and invalid options."""

from __future__ import annotations

import pytest

from tests.cli.test_contract import run_failing, run_json
from tests.conftest import DIGITS


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

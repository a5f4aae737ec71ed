"""`cast` and `sensitivity` on the command line: JSON keys, exit codes, files only where they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from densenet_deploy.cli import main
from tests.cli.test_contract import run_failing, run_json
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_cast_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    answer = run_json(capsys, "cast", tiny_onnx, "--fp16", "--calibration", SAMPLES, "--samples", 32, "-o", tmp_path)
    assert Path(answer["onnx"]) == tmp_path / "tiny.fp16.onnx"
    assert answer["bytes"] == Path(answer["onnx"]).stat().st_size
    assert answer["parity"]["cosine"] >= 0.9999
    assert answer["parity_rounded"]["cosine"] >= 0.9999
    assert set(answer["parity_measured"]) == {"file", "rounded"}
    assert answer["float_nodes"] == {}


def test_cast_says_what_it_did_not_look_at(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    assert main(["cast", str(tiny_onnx), "--fp16", "-o", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "not checked" in captured.err
    assert "accumulate FP16 in FP32" in captured.out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--fp16", "--bf16"], 2),
        (["--fp16", "--gate", "cosin=1"], 2),
        (["--fp16", "--samples", "0"], 2),
        (["--fp16", "-o", "x.png"], 2),
        (["--bf16", "--gate", "cosine=1"], 4),
        (["--fp16", "--calibration", "nowhere"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_cast_that_fails_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path, words: list[str], code: int
) -> None:
    place = [] if "-o" in words else ["-o", f"{tmp_path}/"]
    assert run_failing(capsys, "cast", tiny_onnx, *words, *place)[0] == code
    assert list(tmp_path.iterdir()) == []


def test_sensitivity_json(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    words = ["--calibration", SAMPLES, "--recipe", "onnxruntime", "--samples", 32, "-o", tmp_path / "s.svg"]
    answer = run_json(capsys, "sensitivity", tiny_onnx, *words)
    assert [len(one["layers"]) for one in answer["sensitivity"]] == [1, 4, 1, 4]
    assert set(answer["sensitivity"][0]) == {"name", "layers", "only_int8", "only_float", "gain_db"}
    assert answer["int8"]["top1"] is None
    assert Path(answer["file"]).read_text().startswith("<?xml")


def test_sensitivity_without_calibration_is_usage(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    assert run_failing(capsys, "sensitivity", tiny_onnx)[0] == 2

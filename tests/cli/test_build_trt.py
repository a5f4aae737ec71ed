"""`build-trt` as it is typed: keys, exit codes, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.nvidia import find_gpus
from tests.cli.test_contract import run_failing, run_json
from tests.conftest import DIGITS
from tests.faults.harness import require_contract, stopped_at

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"


@pytest.fixture
def model(tiny_onnx: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_onnx, tmp_path / "tiny.onnx"))


def test_build_trt_json(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    words = ["build-trt", model, "--fp16", "--flavour", "rtx", "--max-batch", "4", "--target", "8.6"]
    answer = run_json(capsys, *words)
    assert Path(answer["engine"]) == model.with_name("tiny.fp16.engine")
    assert Path(answer["sidecar"]) == model.with_name("tiny.fp16.engine.json")
    assert Path(answer["onnx"]) == model.with_name("tiny.fp16.onnx")
    assert (answer["flavour"], answer["precision"], answer["targets"]) == ("rtx", "fp16", ["8.6"])
    assert answer["bytes"] == Path(answer["engine"]).stat().st_size
    assert answer["seconds"] > 0
    assert answer["profiles"] == [[1, 4, 4]]
    assert answer["runs"]["share_of_macs"] == {"fp16": 1.0}
    assert answer["parity"]["cosine"] >= 0.9999
    assert any("untrained" in note for note in answer["notes"])
    assert run_json(capsys, *words)["up_to_date"] is True
    assert run_json(capsys, "inspect", answer["engine"])["runs"] == answer["runs"]


def test_int8_in_one_command(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    words = ["build-trt", tiny_onnx, "--int8", "--calibration", SAMPLES, "--samples", "64", "-o", f"{tmp_path}/"]
    answer = run_json(capsys, *words, "--flavour", "rtx", "--weights", "per-tensor", "--quantize-bus")
    assert answer["runs"]["convolutions"] == {"int8": 9, "fp16": 1}
    assert Path(answer["onnx"]).name == "tiny.int8.tensorrt.onnx"
    assert Path(answer["engine"]).name == "tiny.int8.engine"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--fp16", "--int8"],
        ["--int8"],
        ["--fp16", "--flavour", "trt"],
        ["--fp16", "--target", "86"],
        ["--fp16", "--max-batch", "0"],
        ["--fp16", "--min-batch", "4", "--max-batch", "2"],
        ["--fp16", "--min-batch", "1", "--min-batch", "2", "--max-batch", "2"],
        ["--fp16", "--tf32"],
        ["--fp16", "--weights", "per-tensor"],
        ["--fp32", "--quantize-bus"],
        ["--bf16", "--calibration", "images"],
        ["--fp16", "--optimization-level", "6"],
        ["--fp16", "--workspace", "0"],
        ["--fp16", "--hardware-compatibility", "ampere"],
        ["--fp16", "--variant", "122"],
        ["--fp32", "--dla", "0"],
        ["--fp16", "-o", "model.onnx"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run_failing(capsys, "build-trt", *words)[0] == 2


def test_bad_input_is_exit_3(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    assert run_failing(capsys, "build-trt", text, "--fp16")[0] == 3
    assert run_failing(capsys, "build-trt", tmp_path / "missing.onnx", "--fp16")[0] == 3
    assert main(["build-trt", str(model), "--fp16", "-q"]) == 0
    capsys.readouterr()
    code, line = run_failing(capsys, "build-trt", tmp_path / "tiny.fp16.onnx", "--int8")
    assert code == 3
    assert "fp16" in line
    engine = tmp_path / "tiny.fp16.engine"
    engine.write_bytes(engine.read_bytes() + b"!")
    assert run_failing(capsys, "inspect", engine)[0] == 3


def test_what_this_tensorrt_cannot_do_is_exit_5(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    for words in (["--target", "9.0"], ["--version-compatible"], ["--timing-cache", "a"], ["--dla", "0"]):
        code, line = run_failing(capsys, "build-trt", model, "--fp16", "--flavour", "rtx", *words)
        assert code == 5
        assert "TensorRT-RTX" in line
    assert [path.name for path in model.parent.iterdir()] == ["tiny.onnx"], "refused before anything was made"


@pytest.mark.skipif(is_installed("tensorrt") and bool(find_gpus()), reason="full TensorRT builds here")
def test_full_tensorrt_is_exit_5_without_package_or_gpu(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert run_failing(capsys, "build-trt", model, "--fp16", "--flavour", "tensorrt")[0] == 5


def test_a_small_workspace_is_exit_6(capsys: pytest.CaptureFixture[str], digits_onnx: Path, tmp_path: Path) -> None:
    words = ["build-trt", digits_onnx, "--fp32", "--flavour", "rtx", "--workspace", "1", "--max-batch", "64"]
    code, line = run_failing(capsys, *words, "-o", f"{tmp_path}/")
    assert code == 6
    assert "--workspace" in line


def test_a_dry_run_prints_one_line(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["build-trt", str(model), "--fp16", "--flavour", "rtx", "--dry-run", "-q"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("tensorrt_rtx --onnx=")
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    answer = run_json(capsys, "build-trt", model, "--fp32", "--flavour", "tensorrt", "--dry-run")
    assert answer["command"].startswith("trtexec ")
    assert [path.name for path in model.parent.iterdir()] == ["tiny.onnx"]


def test_an_odd_path_works(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"two\nlines \xff\xfe")
    folder.mkdir()
    model = Path(shutil.copy(tiny_onnx, folder / "model.onnx"))
    assert run_json(capsys, "build-trt", model, "--fp32", "--flavour", "rtx")["precision"] == "fp32"
    assert (folder / "model.fp32.engine.json").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_build_within_seconds(
    number: signal.Signals, code: int, digits_onnx: Path, tmp_path: Path
) -> None:
    """bad-inputs 46. Twelve profiles keep TensorRT busy for longer than the signal takes to come."""
    profiles = [word for batch in range(1, 13) for word in ("--max-batch", str(batch))]
    words = ("build-trt", digits_onnx, "--fp32", "--flavour", "rtx", *profiles, "-o", f"{tmp_path}/")
    ended = stopped_at("graph: ", number, *words, folder=tmp_path)
    assert ended.seconds < 5
    require_contract(ended, code, "stopped by a signal")
    assert list(tmp_path.iterdir()) == []


def test_two_builds_of_one_output_leave_one_whole_engine(model: Path) -> None:
    """bad-inputs 47."""
    command = [sys.executable, "-m", "densenet_deploy", "build-trt", str(model), "--fp32", "--flavour", "rtx", "--json"]
    batches = [["--max-batch", "2"], ["--max-batch", "3"]]
    running = [subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) for words in batches]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    inspected = subprocess.run(
        [sys.executable, "-m", "densenet_deploy", "inspect", answers[0]["engine"], "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(inspected.stdout)["profiles"] in [answer["profiles"] for answer in answers]

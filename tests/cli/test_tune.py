"""`tune` on the command line: its keys, its exit codes, and its end by a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from tests.cli.test_benchmark import _children, _is_alive
from tests.cli.test_contract import run_failing, run_json

QUICK = ("--precision", "fp32", "--backend", "onnxruntime", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shared, so that what one test measured the next remembers."""
    return tmp_path_factory.mktemp("tune")


def test_tune_json(capsys, tiny_onnx, folder):
    answer = run_json(capsys, "tune", tiny_onnx, *QUICK, "-o", folder)
    assert answer["chosen"]["model"] == str(tiny_onnx)
    assert answer["chosen"]["reason"]
    (point,) = answer["pareto"]
    assert point["latency_ms"] > 0
    assert point["peak_memory_bytes"] > point["bytes"]
    assert point["parity"]["cosine"] == pytest.approx(1)


def test_the_choice_comes_first_and_its_command_last(capsys, tiny_onnx, folder):
    assert main(["tune", str(tiny_onnx), *QUICK, "-o", str(folder)]) == 0
    printed = capsys.readouterr()
    first, reason, *_, last = printed.out.splitlines()
    assert first == f"chosen      {tiny_onnx}"
    assert reason.startswith("reason      The FP32 file itself")
    assert last.startswith(f"again       densenet-deploy benchmark {tiny_onnx} --backend onnxruntime")
    assert printed.err.count("untrained") == 1


def test_limits_that_cannot_be_kept_are_exit_4_with_the_report(capsys, tiny_onnx, folder):
    assert main(["tune", str(tiny_onnx), *QUICK, "-o", str(folder), "--max-memory", "1", "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["chosen"] is None
    assert "--max-memory" in json.loads(captured.err)["error"]["message"]


def test_a_dry_run_lists_the_work(capsys, tiny_onnx, tmp_path):
    answer = run_json(capsys, "tune", tiny_onnx, "--variant", "cifar-bc-10-4", "--dry-run", "-o", tmp_path / "new")
    assert answer["dry_run"] is True
    assert answer["plan"]["candidates"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--variant", "121", "--threads", "many"], 2),
        (["--variant", "121", "--max-latency", "0"], 2),
    ],
)
def test_failures_have_their_codes(words, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_failing(capsys, "tune", *words)[0] == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc and pgrep for the children")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_tuning_within_seconds_and_its_children(number, code, tiny_onnx, tmp_path):
    words = ["tune", str(tiny_onnx), "--precision", "fp32", "--batch", "64", "--json", "-o", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "densenet_deploy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while len(children := _children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) >= 2
    process.send_signal(number)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 5  # bad-inputs 46
    assert (process.returncode, out) == (code, "")
    assert json.loads(err)["error"]["exit_code"] == code
    assert not [child for child in children if _is_alive(child)]
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []

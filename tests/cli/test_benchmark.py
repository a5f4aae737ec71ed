"""`benchmark` on the command line: its keys, its exit codes, and its end by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from tests.cli.test_contract import run_failing, run_json

QUICK = ("--seconds", "0", "--rounds", "3")
WORKER = "densenet_deploy.bench.candidate"


def _children(parent: int) -> list[int]:
    """The ids of the workers that `parent` started."""
    done = subprocess.run(["pgrep", "-P", str(parent), "-f", WORKER], capture_output=True, text=True, check=False)
    return [int(number) for number in done.stdout.split()]


def _is_alive(process: int) -> bool:
    """Whether it runs; one that ended and was not waited for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_benchmark_json(capsys, tiny_onnx, tmp_path):
    file = tmp_path / "results.json"
    answer = run_json(capsys, "benchmark", tiny_onnx, "--batch", "1,2", "-o", file, *QUICK)
    assert json.loads(file.read_text()) == answer
    assert [result["batch"] for result in answer["results"]] == [1, 2]
    for result in answer["results"]:
        assert {"model", "backend", "precision", "images_per_second", "peak_memory_bytes"} <= result.keys()
        assert {"mean", "p50", "p90", "p99"} <= result["latency_ms"].keys()


@pytest.mark.slow
def test_backends_come_as_a_list_or_one_by_one(capsys, tiny_onnx):
    for words in (["--backend", "onnxruntime,openvino"], ["--backend", "onnxruntime", "--backend", "openvino"]):
        answer = run_json(capsys, "benchmark", tiny_onnx, *words, "--device", "cpu", "--threads", "1", *QUICK)
        found = [(result["backend"], result["device"], result["threads"]) for result in answer["results"]]
        assert found == [("onnxruntime", "cpu", 1), ("openvino", "cpu", 1)]


def test_the_table_names_the_machine_and_the_file_that_was_written(capsys, tiny_onnx, tmp_path):
    out = tmp_path / "new.csv"
    assert main(["benchmark", str(tiny_onnx), *QUICK, "-o", str(out), "-q"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("model ")
    assert "usable CPUs" in printed
    assert printed.endswith(f" {out}\n")
    assert out.read_text().startswith("model,")


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "0"],
        ["--batch", "many"],
        ["--threads", "0"],
        ["--threads", "1,"],
        ["--rounds", "2"],
        ["--seconds", "-1"],
        ["--scenario", "camera"],
        ["--scenario", "camera", "--fps", "0"],
        ["--fps", "30"],
        ["--streams", "2"],
        ["-o", "plot.png"],
    ],
    ids=" ".join,
)
def test_invalid_options_are_exit_2(capsys, tiny_onnx, words):
    assert run_failing(capsys, "benchmark", tiny_onnx, *words)[0] == 2


def test_other_failures_have_their_codes(capsys, tiny_onnx, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    assert run_failing(capsys, "benchmark", text, *QUICK)[0] == 3
    assert run_failing(capsys, "benchmark", tiny_onnx, "--compare", text, *QUICK)[0] == 3
    assert (
        run_failing(capsys, "benchmark", tiny_onnx, "-o", text.with_suffix(".json"), *QUICK, "--device", "npu")[0] == 5
    )
    assert not text.with_suffix(".json").exists()
    assert run_failing(capsys, "benchmark", tiny_onnx, "--backend", "torch", *QUICK)[0] == 5
    (tmp_path / "taken.json").write_text("{}")
    assert run_failing(capsys, "benchmark", tiny_onnx, "-o", tmp_path / "taken.json", *QUICK)[0] == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc and pgrep for the children")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_benchmark_within_seconds_and_its_children(number, code, tiny_onnx, tmp_path):
    words = ["benchmark", str(tiny_onnx), str(tiny_onnx), "--seconds", "600", "-o", str(tmp_path / "r.json"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "densenet_deploy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(children := _children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 2
    process.send_signal(number)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 5  # bad-inputs 46
    assert (process.returncode, out) == (code, "")
    assert json.loads(err)["error"]["exit_code"] == code
    assert not [child for child in children if _is_alive(child)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc and pgrep for the children")
def test_the_children_of_a_benchmark_that_was_killed_end_by_themselves(tiny_onnx):
    process = subprocess.Popen(
        [sys.executable, "-m", "densenet_deploy", "benchmark", str(tiny_onnx), "--seconds", "20", "--rounds", "20"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (children := _children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60  # it imports, or ends its turn, and finds nobody there
    while any(map(_is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_alive, children))

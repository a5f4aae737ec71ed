"""The command `report` as a user meets it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from densenet_deploy.errors import install_command
from tests.cli.test_contract import run_failing, run_json


def test_report_json_names_the_file(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    answer = run_json(capsys, "report", tiny_onnx, "-o", out)
    assert answer["file"] == str(out)
    assert answer["chosen"] is None
    assert answer["bytes"] == out.stat().st_size
    assert out.read_bytes().startswith(b"<!doctype html>")


@pytest.mark.slow
def test_report_reads_what_benchmark_wrote(capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path) -> None:
    benchmark = tmp_path / "benchmark.json"
    words = ["benchmark", tiny_onnx, "--seconds", "0.1", "--rounds", "3", "--threads", "1", "-o", benchmark]
    run_json(capsys, *words)
    answer = run_json(capsys, "report", tiny_onnx, "--benchmark", benchmark, "-o", f"{tmp_path}/")
    assert answer["file"] == str(tmp_path / "tiny.report.html")
    assert answer["chosen"] == tiny_onnx.name
    assert main(["report", str(tiny_onnx), "-o", f"{tmp_path}/"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'tiny.report.html'}\nmodel to ship: none\n"


def test_failures_have_their_exit_codes(
    capsys: pytest.CaptureFixture[str], tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.json"
    text.write_text("not JSON")
    assert run_failing(capsys, "report")[0] == 2
    assert run_failing(capsys, "report", tiny_onnx, "-o", tmp_path / "page.png")[0] == 2
    assert run_failing(capsys, "report", tiny_onnx, "--max-drop", "-1")[0] == 2
    assert run_failing(capsys, "report", tiny_onnx, "--benchmark", text, "-o", tmp_path / "a.html")[0] == 3
    assert run_failing(capsys, "report", tmp_path / "missing.onnx", "-o", tmp_path / "a.html")[0] == 3
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, line = run_failing(capsys, "report", tiny_onnx, "-o", tmp_path / "a.html")
    assert code == 5
    assert install_command("report") in line
    assert not (tmp_path / "a.html").exists()

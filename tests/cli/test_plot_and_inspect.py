"""The commands `plot` and `inspect` as a user meets them: JSON keys, exit codes, one line for every failure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from densenet_deploy.errors import install_command
from tests.cli.test_contract import run_failing, run_json

CUSTOM = ["--growth-rate", "4", "--blocks", "2,2", "--init-features", "8", "--stem", "cifar"]


def test_plot_json_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = run_json(capsys, "plot", "cost", "--variant", "121", "-o", tmp_path / "cost.svg")
    assert answer["file"] == str(tmp_path / "cost.svg")
    assert Path(answer["file"]).read_bytes().startswith(b"<?xml")


def test_plot_says_where_the_figure_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plot", "connections", *CUSTOM, "-o", f"{tmp_path}/"]) == 0
    (figure,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"wrote {figure}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["plot"],
        ["plot", "cost"],
        ["plot", "pareto", "--variant", "121"],
        ["inspect", "--variant", "121", "--sweep", "growth-rate=a"],
        ["inspect", "--variant", "121", "--sweep", "growth-rate=12", "--profile"],
        ["inspect", "model.onnx", "--sweep", "growth-rate=12"],
        ["inspect", "model.engine", "--image-size", "64"],
        ["inspect", "model.engine", "--precision", "fp16"],
        ["inspect", "model.engine", "--profile"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run_failing(capsys, *words)[0] == 2


def test_what_cannot_be_read_is_exit_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text("not JSON")
    assert run_failing(capsys, "plot", "pareto", text, "-o", tmp_path / "a.png")[0] == 3
    foreign = tmp_path / "mine.png"
    foreign.write_bytes(b"mine")
    assert run_failing(capsys, "plot", "cost", "--variant", "121", "-o", foreign)[0] == 3
    assert foreign.read_bytes() == b"mine"


def test_a_missing_matplotlib_is_exit_5(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, line = run_failing(capsys, "plot", "cost", "--variant", "121", "-o", tmp_path / "a.png")
    assert code == 5
    assert install_command("plot") in line


def test_inspect_keeps_its_keys_and_adds_the_profile(capsys: pytest.CaptureFixture[str], tiny_onnx: Path) -> None:
    answer = run_json(capsys, "inspect", tiny_onnx, "--profile", "--backend", "openvino", "--threads", "1")
    assert {"parameters", "macs", "blocks", "activation_memory", "training_memory", "layers"} <= set(answer)
    assert answer["profile"]["placement"]["backend"] == "openvino"
    assert answer["profile"]["operators"][0].keys() == {"name", "operator", "provider", "precision", "ms"}
    assert run_json(capsys, "inspect", tiny_onnx)["profile"] is None


def test_a_sweep_without_measuring_needs_no_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["inspect", *CUSTOM, "--sweep", "growth-rate=2,4", "--no-measure"]
    answer = run_json(capsys, *words)
    assert [point["value"] for point in answer["points"]] == ["2", "4"]
    assert sum(block["macs"] for block in answer["blocks"]) == answer["macs"]
    assert {"parameters", "macs", "activation_bytes", "training_bytes", "latency_ms"} <= set(answer["points"][0])
    shaped = run_json(capsys, *words, "--channels", "1", "--image-size", "64x32")
    assert shaped["image_size"] == [64, 32]
    fewer = run_json(capsys, "inspect", *CUSTOM, "--channels", "1", "--image-size", "64x32")
    assert fewer["parameters"] == shaped["parameters"] < answer["parameters"]
    report = tmp_path / "sweep.json"
    report.write_text(json.dumps(answer))
    assert run_failing(capsys, "plot", "pareto", report, "-o", tmp_path / "a.png")[0] == 3  # no latency was measured

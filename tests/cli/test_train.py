"""`train` as a command: its JSON, its default folder, and that each option arrives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from densenet_deploy.training.state import TrainingState
from tests.training.tiny import LINE, write_classes


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_classes(tmp_path / "data")


def test_json_files_and_the_default_folder(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    line = ["train", "--data", str(data), *map(str, LINE), "--epochs", "2", "--batch-size", "8", "--json"]
    assert main(line) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["schema"], answer["epochs"], answer["checkpoint"]) == (1, 2, "artifacts/train/best.safetensors")
    assert answer["best_epoch"] in (1, 2)
    assert answer["top1"] == answer["history"][answer["best_epoch"] - 1]["top1"]
    assert "held out" in captured.err
    assert {"last", "curves", "parameters", "classes", "weights_sha256", "input", "seconds"} <= set(answer)
    assert answer["input"]["assumed"] == []


def test_each_option_reaches_the_training(data: Path) -> None:
    options = {
        "epochs": 1,
        "batch-size": 12,
        "optimizer": "adamw",
        "lr": 0.002,
        "head-lr": 0.003,
        "weight-decay": 0.004,
        "schedule": "cosine",
        "warmup-epochs": 0.5,
        "freeze": "until=conv0",
        "augment": "none",
        "mixup": 0.25,
        "label-smoothing": 0.125,
        "amp": "bf16",
        "ema": 0.75,
        "shards": 3,
        "seed": 7,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    line = ["train", "--data", str(data), *map(str, LINE), *words, "--memory-efficient", "-o", "run", "-q"]
    assert main(line) == 0
    facts = TrainingState.read(Path("run/state.pt")).facts
    assert {name: facts[name.replace("-", "_")] for name in options} == {n: str(v) for n, v in options.items()}
    assert facts["flip"] == "False"
    assert json.loads(facts["network"])["blocks"] == [1, 1]
    assert json.loads(facts["preprocessing"])["std"] == [0.25, 0.25, 0.25]
    taught = [
        "--epochs",
        "1",
        "--batch-size",
        "12",
        "--teacher",
        "run/best.safetensors",
        "--temperature",
        "3",
        "--alpha",
        "0.25",
        "-o",
        "taught",
        "-q",
    ]
    assert main(["train", "--data", str(data), *map(str, LINE), *taught]) == 0
    facts = TrainingState.read(Path("taught/state.pt")).facts
    assert (facts["temperature"], facts["alpha"]) == ("3.0", "0.25")


def test_of_several_processes_the_first_one_prints(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")  # of one: the environment of torchrun without its rendezvous
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the command replaces
    line = ["train", "--data", str(data), *map(str, LINE), "--epochs", "1", "--batch-size", "8", "-q"]
    assert main(line) == 0
    assert capsys.readouterr().out == ""

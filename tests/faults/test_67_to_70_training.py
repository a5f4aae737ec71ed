"""Cases 67 to 70: training data that is bad, a process that is killed, a loss that diverges, a teacher that differs.

That nothing changes on disk is checked for every refusal; `tests/training` and `tests/workflows/train` have the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from densenet_deploy.cli import main
from densenet_deploy.models.build import build_model
from densenet_deploy.training.state import TrainingState
from densenet_deploy.variants.spec import DenseNetSpec
from tests.faults.harness import Commands, arguments, require_contract, run_process, start_process
from tests.training.tiny import LINE, write_classes

QUICK = (*LINE, "--epochs", 1, "--batch-size", 8, "-o", "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "data")


def test_67_an_empty_class_is_named(commands: Commands, data: Path) -> None:
    (data / "empty").mkdir()
    commands.refused("train", "--data", data, *QUICK, says=f"{data}/empty: is a class folder without images")


def test_67_a_single_class(commands: Commands, data: Path) -> None:
    shutil.rmtree(data / "light")
    commands.refused("train", "--data", data, *QUICK, says="holds a single class, 'dark'")


def test_67_unreadable_images_are_counted_and_named(commands: Commands, data: Path) -> None:
    for name in ("000.png", "001.png"):
        (data / "dark" / name).write_bytes(b"no image")
    says = ("2 of 40 images cannot be read", f"{data}/dark/000.png: is text", f"{data}/dark/001.png")
    commands.refused("train", "--data", data, *QUICK, says=says)
    commands.refused("train", "--data", data, *QUICK, "--max-bad", 1, says=says)
    assert len(commands.answer("train", "--data", data, *QUICK, "--max-bad", 2)["bad"]) == 2


def test_67_fewer_images_than_a_batch(commands: Commands, data: Path) -> None:
    words = ("train", "--data", data, *QUICK, "--batch-size")
    commands.refused(*words, 37, says="36 images to train on, fewer than a batch of 37")
    assert commands.answer(*words, 36)["training_images"] == 36


def whole_and_killed(data: Path, folder: Path) -> tuple[Path, int]:
    """Train whole in this process; kill another training in the middle of an epoch, and return what it had done."""
    line = ("train", "--data", data, *LINE, "--epochs", 16, "--batch-size", 4, "-o")
    assert main([*map(str, (*line, folder / "whole")), "-q"]) == 0
    killed = folder / "killed"
    process = start_process(arguments(*line, killed), folder)
    metrics, state = killed / "metrics.jsonl", killed / "state.pt"
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
                break
            time.sleep(0.002)
        written = state.stat().st_mtime_ns
        while process.poll() is None and state.stat().st_mtime_ns == written:
            time.sleep(0.001)
        time.sleep(0.02)  # an epoch takes several times as long: it has begun
        seen = len(metrics.read_text().splitlines())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return killed, seen


@pytest.mark.slow
def test_68_killed_in_the_middle_of_an_epoch_it_goes_on_to_the_same_bits(
    commands: Commands, data: Path, tmp_path: Path
) -> None:
    killed, seen = whole_and_killed(data, tmp_path)
    done = TrainingState.read(killed / "state.pt").epochs
    assert seen <= done < 16  # at most the epoch it was in is lost
    line = ("train", "--data", data, *LINE, "--epochs", 16, "--batch-size", 4, "-o", killed, "--resume")
    answer = commands.answer(*line)
    assert answer["resumed_from"] == done
    assert answer["epochs"] == 16
    for name in ("best.safetensors", "last.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(killed.glob(".*"))


@pytest.mark.slow
def test_68_two_processes_whole_killed_and_resumed_are_one(commands: Commands, data: Path, tmp_path: Path) -> None:
    """Two processes of torchrun and one with two shards end at the same bits; so does one that goes on with theirs."""
    line = ("train", "--data", data, *LINE, "--epochs", 6, "--batch-size", 8, "-o")
    alone = commands.answer(*line, "alone", "--shards", 2)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*run, *arguments(*line, "both", "--json")[2:]]
    ended = run_process(command, tmp_path)
    assert ended.code == 0, ended.err
    both = json.loads(ended.out)  # the first process alone prints
    assert both["processes"] == 2
    assert both["weights_sha256"] == alone["weights_sha256"]
    assert [one["top1"] for one in both["history"]] == [one["top1"] for one in alone["history"]]

    process = start_process([*run, *arguments(*line, "killed")[2:]], tmp_path)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and not metrics.exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = commands.answer(*line, "killed", "--resume")
    assert resumed["processes"] == 1
    assert resumed["shards"] == 2
    assert resumed["weights_sha256"] == alone["weights_sha256"]


def test_69_a_diverging_loss_keeps_the_last_good_checkpoint(commands: Commands, data: Path, tmp_path: Path) -> None:
    """A weight decay that multiplies the weights by -9 at every step: no float32 survives that for long."""
    line = ("--epochs", 40, "--lr", 10, "--weight-decay", 1, "--schedule", "constant", "--batch-size", 8)
    code = main([*map(str, ("train", "--data", data, *LINE, *line, "-o", "run"))])
    captured = commands.streams.readouterr()
    assert code == 4
    assert captured.out == ""
    (message,) = captured.err.splitlines()
    assert "the checkpoints of epoch" in message
    state = TrainingState.read(tmp_path / "run" / "state.pt")
    assert 1 <= state.epochs < 40
    assert f"epoch {state.epochs} stay in run" in message
    for file in ("best.safetensors", "last.safetensors"):
        assert commands.answer("inspect", f"run/{file}")
    assert all(torch.isfinite(tensor).all() for tensor in state.trainer["network"].values())


SPEC = DenseNetSpec(growth_rate=2, blocks=(1, 1), init_features=4, stem="cifar", num_classes=2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": 3}, "has 3 classes, the data 2"),
        ({"in_channels": 1}, "does not take images of 3x8x8"),
        ({"head": "features"}, "has 5 classes, the data 2"),
    ],
)
def test_70_a_teacher_of_other_classes_or_inputs(
    commands: Commands, data: Path, changes: dict[str, object], says: str
) -> None:
    spec = DenseNetSpec(**{**SPEC.__dict__, **changes})
    torch.save(build_model(spec).state_dict(), "teacher.pth")
    line = ("train", "--data", data, *QUICK, "--channels", 3, "--teacher", "teacher.pth")
    commands.refused(*line, code=2, says=says)


@pytest.mark.slow
def test_70_a_teacher_with_other_labels_or_normalization(commands: Commands, data: Path, tmp_path: Path) -> None:
    commands.answer("train", "--data", data, *QUICK)
    other = write_classes(tmp_path / "other", 20, ("bright", "dark"))
    line = ("--epochs", 1, "--batch-size", 8, "--teacher", "run/best.safetensors", "-o", "student")
    custom = LINE[:10]
    commands.refused("train", "--data", other, *custom, *line, code=2, says="has other classes than the data")
    commands.refused("train", "--data", data, *custom, *line, "--mean", 0.1, code=2, says="takes images with mean")
    commands.refused(
        "train", "--data", data, *custom, *line[:4], "--teacher", "121", "-o", "x", code=2, says="untrained"
    )
    assert commands.answer("train", "--data", data, *custom, *line)["input"]["mean"] == [0.5, 0.5, 0.5]


def test_the_json_of_a_refusal_is_one_object(commands: Commands, data: Path, tmp_path: Path) -> None:
    ended = run_process(arguments("train", "--data", "nowhere"), tmp_path)
    require_contract(ended, 3, "nowhere")

"""The state of a training as a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from densenet_deploy.errors import CheckpointError, DataError, UsageError
from densenet_deploy.training.state import TrainingState

FACTS = {"epochs": "3", "lr": "0.1"}


def test_it_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    weights = {"a": torch.tensor([1.5, float("inf")])}
    state = TrainingState(FACTS, "cpu", 2, {"network": weights, "scaler": {}}, weights, 1, [{"epoch": 1, "top5": None}])
    state.write(path)
    read = TrainingState.read(path)
    assert torch.equal(read.best["a"], weights["a"])
    assert torch.equal(read.trainer["network"]["a"], weights["a"])
    assert (read.facts, read.machine, read.epochs, read.best_epoch, read.records) == (
        FACTS, "cpu", 2, 1, [{"epoch": 1, "top5": None}],
    )  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError):
        TrainingState.read(path)
    TrainingState(FACTS).write(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        TrainingState.read(path)


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"format": 1, "facts": Code()}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        TrainingState.read(tmp_path / "state.pt")


def test_other_facts_are_named(tmp_path: Path) -> None:
    state = TrainingState(FACTS)
    state.require_same(dict(FACTS), tmp_path / "state.pt")
    for facts, subject in (({**FACTS, "lr": "0.2"}, "lr"), ({**FACTS, "weight_decay": "1"}, "weight-decay")):
        with pytest.raises(UsageError) as caught:
            state.require_same(facts, tmp_path / "state.pt")
        assert caught.value.subject == subject

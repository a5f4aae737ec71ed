"""The curves of a training, and the file they are read from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from densenet_deploy.analysis.plots.plot import draw
from densenet_deploy.analysis.plots.training import TrainingCurves
from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.workflows.plot import PlotRequest, gather

RECORDS = [
    {"epoch": 1, "loss": 2.0, "top1": 0.5, "train_top1": 0.25},
    {"epoch": 2, "loss": 1.0, "top1": 0.75, "train_top1": 0.5},
    {"epoch": 3, "loss": 0.5, "top1": 0.75, "train_top1": 0.625},
]


def test_the_lines_are_the_numbers_in_percent_and_the_first_of_the_best_epochs_is_marked() -> None:
    figure = draw("training", TrainingCurves.of("net", RECORDS))
    above, below = figure.axes
    assert list(above.lines[0].get_ydata()) == [2.0, 1.0, 0.5]
    training, validation, mark = below.lines[:3]
    assert list(training.get_ydata()) == [25, 50, 62.5]
    assert list(validation.get_ydata()) == [50, 75, 75]
    assert list(np.ravel(mark.get_xydata())) == [2, 75]
    assert "Best epoch: 2 of 3" in " ".join(text.get_text() for text in figure.texts)


def test_without_accuracy_in_training_one_line_is_left() -> None:
    records = [{**record, "train_top1": None} for record in RECORDS]
    curves = TrainingCurves.of("net", records)
    assert curves.train_top1 is None
    assert [text.get_text() for text in draw("training", curves).axes[1].get_legend().get_texts()] == ["validation"]


def test_the_command_reads_the_lines_of_a_training(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    curves = gather("training", PlotRequest((file,))).data
    assert curves == TrainingCurves("metrics.jsonl", [1, 2, 3], [2.0, 1.0, 0.5], [0.5, 0.75, 0.75], [0.25, 0.5, 0.625])


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "no epoch"), ("{", "not JSON"), ('{"epoch": 1, "loss": 1.0}', "'top1'"), ("[1]", "'epoch'")],
)
def test_another_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=why):
        gather("training", PlotRequest((file,)))


def test_a_variant_has_no_curves() -> None:
    with pytest.raises(UsageError):
        gather("training", PlotRequest(variant="121"))

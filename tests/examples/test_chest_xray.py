"""The chest X-ray example: its radiographs, and the whole way from training to INT8."""

import csv

import numpy as np
import pytest
from PIL import Image

from densenet_deploy.workflows.evaluate import evaluate
from examples.chest_xray import FINDINGS, SIZE, draw, main, write_set


def test_radiographs_have_16_bits_and_findings_that_vary():
    drawn = [draw(np.random.default_rng(seed)) for seed in range(40)]
    assert {(pixels.dtype.name, pixels.shape) for pixels, _ in drawn} == {("uint16", (SIZE, SIZE))}
    shares = np.mean([shows for _, shows in drawn], axis=0)
    assert ((shares > 0.1) & (shares < 0.6)).all()
    again, _ = draw(np.random.default_rng(0))
    assert np.array_equal(again, drawn[0][0])
    assert len(np.unique(again & 0xFF)) > 200  # the low byte is not empty


def test_a_set_is_files_and_a_table(tmp_path):
    table = write_set(tmp_path, 3, seed=1)
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[0] == ["file", *FINDINGS]
    assert [row[0] for row in rows[1:]] == ["0000.png", "0001.png", "0002.png"]
    with Image.open(tmp_path / "0000.png") as image:
        assert image.mode == "I;16"


@pytest.mark.slow
def test_the_network_finds_what_was_drawn_in_float_and_in_int8(tmp_path, capsys):
    main(tmp_path)
    assert "yes" in capsys.readouterr().out
    table = tmp_path / "held_out" / "findings.csv"
    floats, int8 = (evaluate(tmp_path / name, table) for name in ("chest.onnx", "chest.int8.onnx"))
    assert (floats.task, floats.count) == ("multilabel", 400)
    assert floats.auroc > 0.95
    assert int8.auroc > floats.auroc - 0.01

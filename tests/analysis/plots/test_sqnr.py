"""The sensitivity figure: every row is drawn, in execution order, with units on both axes; it becomes a real file."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from densenet_deploy.analysis.plots.plot import draw, rendered
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.plots.style import VERMILLION
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity

WHOLE = Cost(37.0)


def _rows(count: int) -> list[Sensitivity]:
    return [Sensitivity(f"net.layer{i}.conv", (), Cost(45.0 + i % 7), Cost(37.5 - i % 3)) for i in range(count)]


def _figure(rows: list[Sensitivity], whole: Cost = WHOLE) -> Figure:
    return draw("sqnr", SensitivityData("title", rows, whole))


def _drawn(rows: list[Sensitivity], kind: str, whole: Cost = WHOLE) -> bytes:
    return rendered(_figure(rows, whole), kind, "sensitivity")


def _texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_row_is_drawn_from_the_top_down_with_its_name(count):
    alone, gained = _figure(_rows(count)).axes
    names = [label.get_text() for label in alone.get_yticklabels()]
    assert len(names) == count
    assert names[-1].endswith("conv")
    low, high = alone.get_ylim()
    assert low > high, "the first row is at the top"
    assert len(alone.collections[-1].get_offsets()) == len(gained.patches) == count
    assert "(dB)" in alone.get_xlabel()
    assert "(dB)" in gained.get_xlabel()


def test_the_three_most_sensitive_are_coloured_and_no_others():
    alone, _ = _figure(_rows(14)).axes
    colours = [label.get_color() for label in alone.get_yticklabels()]
    marked = [index for index, colour in enumerate(colours) if colour == VERMILLION]
    assert marked == [0, 1, 7]  # 45 dB twice, then the first of those with 46


def test_numbers_stand_beside_few_rows_only():
    alone, gained = _figure(_rows(5)).axes
    assert "45.0" in _texts(alone)
    assert {"+0.5", "−0.5"} <= set(_texts(gained))
    alone, gained = _figure(_rows(40)).axes
    assert _texts(alone) == ["everything in INT8: 37.0 dB"]
    assert _texts(gained) == []


def test_what_is_infinite_is_left_out_not_drawn_somewhere():
    rows = [*_rows(3), Sensitivity("net.free.conv", (), Cost(math.inf), Cost(-math.inf))]
    alone, gained = _figure(rows).axes
    assert np.ma.getmaskarray(alone.collections[-1].get_offsets())[:, 0].tolist() == [False] * 3 + [True]
    assert math.isnan(gained.patches[3].get_width())
    assert _drawn(rows, "png", Cost(math.inf))


def test_files_are_figures_and_the_same_every_time():
    one, two = (_drawn(_rows(5), "png") for _ in range(2))
    assert one == two
    with Image.open(io.BytesIO(one)) as figure:
        assert figure.size[0] == 1200
        assert figure.getpixel((0, 0))[:3] == (255, 255, 255)
    assert b"<svg" in _drawn(_rows(5), "svg")


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys; from densenet_deploy.analysis.plots.plot import draw, rendered;"
        "from densenet_deploy.analysis.plots.sqnr import SensitivityData;"
        "from densenet_deploy.analysis.sensitivity import Cost;"
        "assert 'matplotlib' not in sys.modules;"
        "rendered(draw('sqnr', SensitivityData('t', [], Cost(1.0))), 'png', 't');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

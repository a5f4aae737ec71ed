"""What the figures show, read back from their axes: the data drawn, not the pixels."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import pkgutil
import sys
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Arc
from PIL import Image

import densenet_deploy.analysis.plots as package
from densenet_deploy.analysis.choice import METRICS, ParetoPoint
from densenet_deploy.analysis.cost import model_cost
from densenet_deploy.analysis.memory import activation_memory
from densenet_deploy.analysis.plots.connections import ConnectionsData, arcs
from densenet_deploy.analysis.plots.cost import CostData
from densenet_deploy.analysis.plots.growth import GrowthData, GrowthStep
from densenet_deploy.analysis.plots.pareto import ParetoData
from densenet_deploy.analysis.plots.plot import draw, plots, rendered
from densenet_deploy.analysis.plots.reuse import ReuseData, ReuseMap
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.plots.training import TrainingCurves
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity
from densenet_deploy.errors import UnknownNameError
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=4, blocks=(3, 2), init_features=8, num_classes=5, bn_size=2)
MAP = np.array([[1.0, 0.5, 0.2], [np.nan, 0.7, 0.1], [np.nan, np.nan, 0.3]])
STEPS = (GrowthStep(1, 0, 8, 16), GrowthStep(1, 1, 12, 16), GrowthStep(2, 0, 6, 8), GrowthStep(2, 1, 10, 8))
POINTS = (
    ParetoPoint("fast", 1.0, 0.7),
    ParetoPoint("good", 2.0, 0.8, (1.8, 2.3), published=True),
    ParetoPoint("worse", 3.0, 0.75),
)
DATA = {
    "reuse": ReuseData("net", [ReuseMap("denseblock1", MAP), ReuseMap("denseblock2", MAP[:2, :2])]),
    "connections": ConnectionsData("net", SPEC, 32),
    "growth": GrowthData("net", STEPS),
    "cost": CostData("net", model_cost(SPEC, 32), activation_memory(SPEC, 32)),
    "pareto": ParetoData("net", POINTS),
    "training": TrainingCurves("net", [1, 2, 3], [2.0, 1.0, 0.5], [0.5, 0.75, 0.75], [0.25, 0.5, 0.6]),
    "sqnr": SensitivityData("net", (Sensitivity("conv0", ("conv0",), Cost(40.0), Cost(33.0)),), Cost(30.0)),
}


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_the_reuse_map_is_drawn_as_it_is() -> None:
    figure = draw("reuse", DATA["reuse"])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), MAP)
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["input", "1", "2"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]


@pytest.mark.parametrize(("layers", "count"), [(1, 3), (3, 10), (24, 325)])
def test_every_source_is_joined_to_every_later_reader(layers: int, count: int) -> None:
    found = arcs(layers)
    assert len(found) == len(set(found)) == count == (layers + 1) * (layers + 2) // 2
    assert all(source < target <= layers + 1 for source, target in found)


def test_an_arc_is_drawn_for_every_connection() -> None:
    figure = draw("connections", DATA["connections"])
    drawn = [[patch for patch in panel.patches if isinstance(patch, Arc)] for panel in figure.axes]
    assert [len(patches) for patches in drawn] == [10, 6]
    ends = {(arc.center[0] - arc.width / 2, arc.center[0] + arc.width / 2) for arc in drawn[1]}
    assert ends == set(arcs(2))
    assert "8 to 20 channels of 8×8" in texts(figure)


def test_growth_draws_channels_above_and_mebibytes_below() -> None:
    above, below = draw("growth", DATA["growth"]).axes
    assert [line.get_ydata().tolist() for line in above.lines] == [[8, 12], [6, 10]]
    assert [line.get_xdata().tolist() for line in above.lines] == [[0, 1], [2, 3]]
    np.testing.assert_allclose(below.lines[0].get_ydata(), [8 * 256 * 4 / 2**20, 12 * 256 * 4 / 2**20])
    assert "MiB" in below.get_ylabel()


def test_cost_bars_are_as_long_as_the_blocks_are_costly() -> None:
    parameters, macs, memory = draw("cost", DATA["cost"]).axes
    blocks = model_cost(SPEC, 32).blocks
    np.testing.assert_allclose([bar.get_width() for bar in parameters.patches], [b.parameters / 1e6 for b in blocks])
    np.testing.assert_allclose([bar.get_width() for bar in macs.patches], [b.macs / 1e6 for b in blocks])
    peaks = activation_memory(SPEC, 32).blocks
    expected = [p.copies_bytes / 2**20 for p in peaks] + [p.bus_bytes / 2**20 for p in peaks]
    np.testing.assert_allclose([bar.get_width() for bar in memory.patches], expected)
    assert [label.get_text() for label in parameters.get_yticklabels()] == [block.name for block in blocks]
    top, bottom = (panel_bar.get_y() for panel_bar in (parameters.patches[0], parameters.patches[-1]))
    assert parameters.transData.transform((0, top))[1] > parameters.transData.transform((0, bottom))[1]


def test_without_memory_there_is_no_panel_for_it() -> None:
    assert len(draw("cost", CostData("net", model_cost(SPEC, 32))).axes) == 2


def test_the_front_is_joined_and_published_points_are_hollow() -> None:
    panel, _ = draw("pareto", DATA["pareto"]).axes
    assert panel.lines[0].get_xydata().tolist() == [[1.0, 70.0], [2.0, 80.0]]
    dots = [found for found in panel.collections if isinstance(found, PathCollection) and found.get_offsets().size]
    placed = {tuple(map(float, found.get_offsets()[0])): found for found in dots}
    hollow = {place for place, found in placed.items() if found.get_facecolor().tolist() == [[1, 1, 1, 1]]}
    assert {(1.0, 70.0), (2.0, 80.0), (3.0, 75.0)} <= set(placed)
    assert hollow == {(2.0, 80.0)}
    assert "published" in texts(panel.figure)


def test_points_are_numbered_and_the_list_says_whose_the_numbers_are() -> None:
    panel, below = draw("pareto", ParetoData("net", POINTS[::-1])).axes
    assert [text.get_text() for text in panel.texts] == ["1", "2", "3"]
    assert [text.xy for text in panel.texts] == [(1.0, 70.0), (2.0, 80.0), (3.0, 75.0)]
    listed = [text.get_text() for text in below.texts]
    assert listed == ["1", "fast: 1.00 ms, 70.00%", "2", "good: 2.00 ms, 80.00%", "3", "worse: 3.00 ms, 75.00%"]


def test_small_errors_are_above_and_on_the_front() -> None:
    errors = [ParetoPoint("fast", 1.0, 4.0), ParetoPoint("good", 2.0, 3.0), ParetoPoint("worse", 3.0, 3.5)]
    panel, below = draw("pareto", ParetoData("net", errors, METRICS["mae"])).axes
    assert panel.lines[0].get_xydata().tolist() == [[1.0, 4.0], [2.0, 3.0]]
    bottom, top = panel.get_ylim()
    assert bottom > 4.0 > 3.0 > top > 2.7
    assert panel.get_ylabel() == "mean absolute error"
    assert [text.get_text() for text in below.texts][1::2] == [
        *("fast: 1.00 ms, 4", "good: 2.00 ms, 3", "worse: 3.00 ms, 3.5")
    ]
    assert draw("pareto", ParetoData("net", [ParetoPoint("exact", 1.0, 0.0)], METRICS["mae"])).axes[0].get_ylim()[0] > 0


def equal_points(count: int) -> list[ParetoPoint]:
    return [ParetoPoint(f"a model of a long name {i}, onnxruntime, 2 threads", 2 + i / 50, 0.99) for i in range(count)]


@pytest.mark.parametrize("points", [POINTS, equal_points(6), equal_points(20), [*POINTS, *equal_points(9)]])
def test_no_text_of_the_front_lies_on_another(points: list[ParetoPoint]) -> None:
    figure = draw("pareto", ParetoData("net", points))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert len(boxes) >= 2 * len(points) + 1
    panel = figure.axes[0]
    assert panel.bbox.width > 0.8 * figure.bbox.width, "texts leave the axes their room"
    boxes.append(panel.get_legend().get_window_extent())
    shrunk = [box.expanded(0.8, 0.6) for box in boxes]  # line height is more than what is inked
    pairs = itertools.combinations(shrunk, 2)
    assert not any(first.overlaps(second) for first, second in pairs)


def test_points_that_overlap_share_one_label() -> None:
    panel, below = draw("pareto", ParetoData("net", [*equal_points(10), ParetoPoint("far", 1.0, 0.5)])).axes
    assert [text.get_text() for text in panel.texts] == ["1", "2–11"]
    assert len(below.texts) == 22
    apart = [ParetoPoint("a", 1.0, 0.5), ParetoPoint("b", 1.0, 0.9), ParetoPoint("c", 1.001, 0.9)]
    panel, _ = draw("pareto", ParetoData("net", apart)).axes
    assert [text.get_text() for text in panel.texts] == ["1, 3", "2"]


def test_the_choice_of_tune_has_a_ring_and_is_named() -> None:
    chosen = dataclasses.replace(POINTS[2], chosen=True)
    panel, below = draw("pareto", ParetoData("net", [*POINTS[:2], chosen])).axes
    rings = [found for found in panel.collections if isinstance(found, PathCollection) and found.get_sizes()[0] == 150]
    assert [ring.get_offsets().tolist() for ring in rings] == [[[3.0, 75.0]]]
    assert below.texts[-1].get_text().startswith("worse (chosen): ")
    assert "chosen by tune" in [text.get_text() for text in panel.get_legend().get_texts()]


def test_a_long_name_keeps_its_end() -> None:
    long = ParetoPoint("x" * 5000 + ", openvino, 1 thread", 1234.5, 0.5)
    figure = draw("pareto", ParetoData("net", [long]))
    assert figure.axes[1].texts[1].get_text().endswith("…" + "x" * 20 + ", openvino, 1 thread: 1,234 ms, 50.00%")
    figure.draw_without_rendering()
    assert figure.axes[1].texts[1].get_window_extent().x1 < figure.bbox.x1


def test_equal_accuracies_are_not_drawn_as_if_they_differed() -> None:
    panel, _ = draw("pareto", ParetoData("net", equal_points(4))).axes
    low, high = panel.get_ylim()
    assert low < 99 < high
    assert high - low >= 1.9
    assert high < 101, "no accuracy is more than 100%"


def test_the_legend_explains_what_is_drawn_and_nothing_else() -> None:
    def explained(points: Sequence[ParetoPoint]) -> tuple[int, int]:
        panel, _ = draw("pareto", ParetoData("net", points)).axes
        return len(panel.get_legend().get_texts()), len(panel.lines)

    assert explained(POINTS) == (3, 1)
    assert explained(POINTS[:1]) == (1, 0), "one point does not make a line"
    assert explained(equal_points(2)) == (2, 0)


def test_latencies_far_apart_get_a_log_scale() -> None:
    near, far = POINTS, (*POINTS, ParetoPoint("slow", 300.0, 0.9))
    assert draw("pareto", ParetoData("net", near)).axes[0].get_xscale() == "linear"
    assert draw("pareto", ParetoData("net", far)).axes[0].get_xscale() == "log"


@functools.cache
def bytes_of(name: str, kind: str) -> bytes:
    return rendered(draw(name, DATA[name]), kind, f"densenet-deploy plot {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [*itertools.product(DATA, ["png", "svg"]), ("growth", "jpg")])
def test_the_same_data_give_the_same_bytes(name: str, kind: str) -> None:
    """A JPEG is a PNG written by Pillow, whatever the figure."""
    first = bytes_of(name, kind)
    with mpl.rc_context({"axes.facecolor": "red", "figure.dpi": 33, "svg.hashsalt": None}):  # a user's own style
        again = rendered(draw(name, DATA[name]), kind, f"densenet-deploy plot {name}")
    assert first == again
    assert f"densenet-deploy plot {name}".encode() in first


@pytest.mark.parametrize("name", DATA)
def test_a_figure_is_1200_pixels_wide_and_nothing_leaves_it(name: str) -> None:
    figure = Image.open(io.BytesIO(bytes_of(name, "png")))
    assert figure.width == 1200
    edges = np.asarray(figure.convert("L"))
    assert all((side == 255).all() for side in (edges[0], edges[-1], edges[:, 0], edges[:, -1]))


def settings() -> dict[str, object]:
    """The settings as they are stored: asking matplotlib for its backend would choose one, and import pyplot."""
    return {name: dict.__getitem__(mpl.rcParams, name) for name in mpl.rcParams}


def test_drawing_leaves_the_user_s_settings_and_pyplot_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other libraries import it
    before = settings()
    draw("cost", DATA["cost"])
    assert settings() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_every_file_of_a_figure_registers_it() -> None:
    files = {module.name for module in pkgutil.iter_modules(package.__path__)} - {"plot", "style"}
    assert set(plots.names()) == files == set(DATA)


def test_an_unknown_figure_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        draw("reus", None)
    assert (caught.value.subject, "'reuse'" in caught.value.fix) == ("reus", True)

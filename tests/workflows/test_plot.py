"""Figures from end to end: from a variant, a checkpoint, a file or reports to a file on disk."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_deploy.analysis.choice import METRICS
from densenet_deploy.analysis.plots.plot import plots
from densenet_deploy.analysis.plots.sqnr import SensitivityData
from densenet_deploy.analysis.sensitivity import Cost, Sensitivity
from densenet_deploy.errors import (
    BackendError,
    DataError,
    InputError,
    MissingPackageError,
    ModelFileError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from densenet_deploy.facts import Architecture
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.plot import PlotRequest, gather, pareto_points, plot, plot_figure
from tests.conftest import DIGITS, TINY

CHECKPOINT = DIGITS / "densenet_digits.safetensors"


def of(*models: Path) -> PlotRequest:
    return PlotRequest(models)


def write(path: Path, report: object) -> Path:
    path.write_text(json.dumps(report))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reuse", "connections", "growth", "cost"])
def test_a_variant_a_checkpoint_and_a_file_can_be_drawn(name: str, tiny_onnx: Path, tmp_path: Path) -> None:
    for request in (PlotRequest(architecture=TINY), of(CHECKPOINT), of(tiny_onnx)):
        report = plot(name, request, str(tmp_path / "figure.png"), force=True)
        with Image.open(report.file) as figure:
            assert figure.width == 1200
        assert report.to_json()["file"] == str(tmp_path / "figure.png")
        assert report.bytes == report.file.stat().st_size


def test_reuse_of_a_checkpoint_is_a_hand_computation_of_its_weights() -> None:
    shown = plot_figure("reuse", of(CHECKPOINT)).axes[0].images[0].get_array()
    state = load(CHECKPOINT).module.state_dict()
    name = "features.denseblock1.denselayer{}.conv1.weight"
    layer2 = state[name.format(2)].abs().double()  # reads 24 channels that enter, and 12 of layer 1
    averages = [layer2[:, :24].mean(), layer2[:, 24:].mean()]
    first = state[name.format(1)].abs().double().mean()
    np.testing.assert_allclose(shown[:2, 1] / shown[0, 0], torch.stack(averages) / first)


def test_growth_of_a_file_is_seen_by_running_it(digits_onnx: Path) -> None:
    of_file, of_module = (gather("growth", of(model)).data for model in (digits_onnx, CHECKPOINT))
    assert of_file.steps == of_module.steps  # type: ignore[attr-defined]
    assert of_file.steps[6].channels == 24 + 6 * 12  # type: ignore[attr-defined]


def test_untrained_weights_are_reported() -> None:
    assert any("untrained" in note for note in gather("reuse", PlotRequest(architecture=TINY)).notes)
    assert gather("connections", PlotRequest(architecture=TINY)).notes == ()


@pytest.mark.slow
def test_a_figure_is_replaced_by_the_same_figure_and_by_nothing_else(tmp_path: Path) -> None:
    path, request = tmp_path / "figure.svg", PlotRequest(architecture=TINY)
    first = plot("cost", request, str(path)).file.read_bytes()
    assert plot("cost", request, str(path)).file.read_bytes() == first
    with pytest.raises(OutputExistsError):
        plot("connections", request, str(path))
    path.write_text("mine")
    with pytest.raises(OutputExistsError) as caught:
        plot("cost", request, str(path))
    assert caught.value.subject == str(path)
    assert path.read_text() == "mine"
    assert plot("cost", request, str(path), force=True).file.read_bytes() == first


def test_a_folder_gets_a_name_for_the_figure(tmp_path: Path) -> None:
    assert plot("cost", PlotRequest(variant="121"), f"{tmp_path}/").file == tmp_path / "densenet121.cost.png"
    for name in ("figure.json", "figure.bmp"):
        with pytest.raises(UsageError) as caught:
            plot("cost", PlotRequest(variant="121"), str(tmp_path / name))
        assert caught.value.subject == str(tmp_path / name)
        assert ".jpg" in caught.value.fix


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".svg"])
def test_the_suffix_selects_the_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v1.2{suffix}"
    first = plot("cost", PlotRequest(variant="cifar-7-4"), path)
    assert plot("cost", PlotRequest(variant="cifar-7-4"), path).bytes == first.bytes, "it may be replaced by itself"
    if suffix == ".svg":
        assert path.read_bytes().startswith(b"<?xml")
        return
    with Image.open(path) as figure:
        assert (figure.format, figure.width) == ("PNG" if suffix == ".png" else "JPEG", 1200)


def test_a_plot_in_one_file_is_offered_by_its_name(tiny_onnx: Path, tmp_path: Path) -> None:
    with plots.restored():

        @plots.register("toy")
        def draw_toy(_: object) -> None:
            """Never gets here: the command knows no data for it."""

        with pytest.raises(UsageError) as caught:
            plot("toy", of(tiny_onnx), str(tmp_path / "toy.png"))
        assert caught.value.subject == "plot toy"
    with pytest.raises(UnknownNameError):
        plot("toy", of(tiny_onnx), str(tmp_path / "toy.png"))


def test_without_matplotlib_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own way to say that there is none
    with pytest.raises(MissingPackageError) as caught:
        plot("cost", PlotRequest(variant="121"))
    assert caught.value.subject == "matplotlib"


@pytest.mark.parametrize("name", ["reuse", "connections", "growth", "cost"])
def test_one_model_or_a_variant_is_wanted(name: str, tiny_onnx: Path) -> None:
    changed = PlotRequest((tiny_onnx,), architecture=Architecture(drop_rate=0.1))
    both = PlotRequest((tiny_onnx,), variant="121")
    for request in (PlotRequest(), of(tiny_onnx, tiny_onnx), both, changed):
        with pytest.raises(UsageError) as caught:
            gather(name, request)
        assert caught.value.subject == "plot"


def test_a_third_party_file_has_costs_but_no_architecture(torchvision_onnx: Path) -> None:
    assert gather("cost", of(torchvision_onnx)).data.memory is None  # type: ignore[attr-defined]
    for name in ("reuse", "connections", "growth"):
        with pytest.raises(ModelFileError) as caught:
            gather(name, of(torchvision_onnx))
        assert caught.value.subject == str(torchvision_onnx)


def test_files_that_show_no_weights_are_refused(tmp_path: Path) -> None:
    ir = tmp_path / "model.xml"
    ir.write_text("<net/>")
    with pytest.raises(BackendError):
        gather("reuse", of(ir))
    with pytest.raises(InputError):
        gather("reuse", of(tmp_path / "missing.onnx"))


def test_benchmark_and_evaluate_meet_by_the_model(tmp_path: Path) -> None:
    latency = {"model": "a/x.onnx", "backend": "openvino", "batch": 8, "latency_ms": {"mean": 3.0, "p50": 2.0}}
    benchmark = write(tmp_path / "b.json", {"results": [latency, {"model": "y.onnx", "latency_ms": {"p50": 1.0}}]})
    evaluate = write(tmp_path / "e.json", {"model": "a/x.onnx", "top1": 0.5})
    _, (point,) = pareto_points([benchmark, evaluate])
    assert (point.label, point.latency_ms, point.merit, point.published) == ("x, openvino, batch 8", 2.0, 0.5, False)
    with pytest.raises(DataError) as caught:
        pareto_points([benchmark])
    assert caught.value.subject == str(benchmark)


@pytest.mark.parametrize(("key", "value"), [("top1", 0.5), ("auroc", 0.91), ("mae", 3.25)])
def test_the_main_figure_of_the_task_is_the_accuracy(key: str, value: float, tmp_path: Path) -> None:
    benchmark = write(tmp_path / "b.json", {"results": [{"model": "x.onnx", "latency_ms": {"p50": 2.0}}]})
    evaluate = write(tmp_path / "e.json", {"model": "x.onnx", "top1": None, key: value, "rmse": 9.0, "f1": 0.1})
    metric, (point,) = pareto_points([benchmark, evaluate])
    assert (metric, point.merit) == (METRICS[key], value)
    tuned = write(tmp_path / "t.json", {"pareto": [{"model": "x.onnx", "latency_ms": 2.0, key: value}]})
    assert pareto_points([tuned]) == (metric, (point,))
    report = plot("pareto", of(benchmark, evaluate), tmp_path / "figure.svg")
    assert report.bytes > 0


def test_models_of_two_tasks_are_not_drawn_in_one_figure(tmp_path: Path) -> None:
    entries = [{"model": name, "latency_ms": 2.0, key: 0.9} for name, key in (("x", "top1"), ("y", "auroc"))]
    path = write(tmp_path / "t.json", {"pareto": entries})
    with pytest.raises(DataError) as caught:
        pareto_points([path])
    assert (caught.value.subject, caught.value.why) == (str(path), "hold models that are compared by top1 and by auroc")


def test_the_latency_is_the_median_of_the_rounds(tmp_path: Path) -> None:
    """As in the table of `benchmark`: the interval belongs to it, not to the median of all calls."""
    entry = {"model": "a", "top1": 0.5, "latency_ms": {"p50": 9.0}, "rounds_ms": [1, 3, 2], "interval_ms": [1, 3]}
    _, (point,) = pareto_points([write(tmp_path / "b.json", {"results": [entry]})])
    assert (point.latency_ms, point.interval_ms) == (2.0, (1.0, 3.0))


def test_a_sweep_s_accuracies_are_marked_as_published(tmp_path: Path) -> None:
    entry = {"name": "resnet50", "latency_ms": 4.0, "latency_interval_ms": [3.0, 5.0], "published": {"top1": 0.7}}
    without = {"name": "custom", "latency_ms": 4.0, "published": None}
    _, (point,) = pareto_points([write(tmp_path / "s.json", {"points": [entry, without]})])
    assert (point.label, point.interval_ms, point.published) == ("resnet50", (3.0, 5.0), True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"results": 3}', '{"results": [{"model": "a", "latency_ms": "x", "top1": 1}]}']
)
def test_what_is_not_a_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        pareto_points([path])
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("report", [{}, {"sensitivity": 3}, {"sensitivity": [{"name": "conv0"}], "int8": {}}])
def test_sqnr_wants_the_report_of_sensitivity(report: object, tmp_path: Path) -> None:
    path = write(tmp_path / "report.json", report)
    with pytest.raises(DataError) as caught:
        gather("sqnr", of(path))
    assert caught.value.subject == str(path)


def test_what_was_lossless_is_read_as_infinite(tmp_path: Path) -> None:
    lossless, measured = {"sqnr_db": None, "top1": None}, {"sqnr_db": 30.5, "top1": 0.5}
    row = {"name": "a", "layers": ["a"], "only_int8": lossless, "only_float": measured}
    report = {"model": "x/y.onnx", "recipe": "openvino", "per": "layer", "float_top1": None, "int8": measured}
    report["sensitivity"] = [row]
    data = gather("sqnr", of(write(tmp_path / "report.json", report))).data
    assert data == SensitivityData(
        "y.onnx, recipe openvino",
        (Sensitivity("a", ("a",), Cost(math.inf), Cost(30.5, 0.5)),),
        Cost(30.5, 0.5),
    )


@pytest.mark.parametrize("name", ["pareto", "sqnr"])
def test_pareto_and_sqnr_are_drawn_from_reports(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        gather(name, PlotRequest(variant="121"))
    assert caught.value.subject == f"plot {name}"

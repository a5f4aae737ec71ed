"""Sensitivity: every block or layer is measured in INT8 alone and in float alone; the outputs agree."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from densenet_deploy.errors import MissingPackageError, OutputExistsError, UnknownNameError, UsageError
from densenet_deploy.quantization.cache import CalibrationCache
from densenet_deploy.workflows.plot import PlotRequest, plot
from densenet_deploy.workflows.quantize import preparation
from densenet_deploy.workflows.quantize.options import QuantizeOptions
from densenet_deploy.workflows.sensitivity import SensitivityOptions, sensitivity
from tests.conftest import DIGITS

SAMPLES = DIGITS.parents[1] / "calibration" / "samples"
BLOCKS = ("conv0", "denseblock1", "transition1", "denseblock2")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CalibrationCache:
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


def _options(recipe: str = "onnxruntime", **more) -> SensitivityOptions:
    return SensitivityOptions(quantization=QuantizeOptions(recipe=recipe, samples=32), **more)


@pytest.fixture(scope="module")
def by_block(tiny_onnx, cache):
    return sensitivity(tiny_onnx, SAMPLES, _options(), cache=cache)


def test_every_block_is_measured_in_execution_order(by_block):
    assert [one.name for one in by_block.sensitivity] == [f"features.{name}" for name in BLOCKS]
    assert [len(one.layers) for one in by_block.sensitivity] == [1, 4, 1, 4]
    assert by_block.file is None


def test_a_block_alone_costs_less_than_everything(by_block):
    """Noise adds up; 1 dB is left for what of it happens to cancel."""
    assert all(one.only_int8.sqnr_db > by_block.int8.sqnr_db - 1 for one in by_block.sensitivity)
    assert max(one.only_int8.sqnr_db for one in by_block.sensitivity) > by_block.int8.sqnr_db + 3


def test_sqnr_is_that_of_the_file_with_these_layers_float(by_block, tiny_onnx, cache):
    """Written and run once more, by what chooses layers."""
    from densenet_deploy.workflows.load import load
    from densenet_deploy.workflows.quantize.layer_choice import Trials
    from densenet_deploy.workflows.stages import Stages

    options = QuantizeOptions(recipe="onnxruntime", samples=32)
    model = load(tiny_onnx)
    trials = Trials(preparation.prepare_int8(model, SAMPLES, options, Stages(), cache), model)
    one = by_block.sensitivity[1]
    assert one.only_float.sqnr_db == pytest.approx(trials.sqnr_db(one.layers))
    others = {layer.name for layer in trials.layers} - set(one.layers)
    assert one.only_int8.sqnr_db == pytest.approx(trials.sqnr_db(others))


@pytest.mark.slow
def test_layers_count_their_steps(tiny_onnx, cache):
    heard: list[tuple[object, ...]] = []
    report = sensitivity(
        tiny_onnx, SAMPLES, _options(per="layer"), cache=cache, progress=lambda *step: heard.append(step)
    )
    assert len(report.sensitivity) == 10
    assert all(one.layers == (one.name,) for one in report.sensitivity)
    assert ("trials", 1, 10) in heard
    assert heard[-1] == ("trials", 10, 10)


@pytest.mark.slow
def test_top1_is_measured_where_there_are_labels(tiny_onnx, cache, images):
    """The folders all hold the same image, so one class in ten is right whatever the model says."""
    report = sensitivity(tiny_onnx, SAMPLES, _options("openvino", data=images), cache=cache)
    assert report.float_top1 == report.int8.top1 == pytest.approx(0.1)
    assert {one.only_int8.top1 for one in report.sensitivity} == {report.float_top1}
    assert "10.00%" in report.to_text()
    answer = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert answer["sensitivity"][0]["only_int8"]["top1"] == pytest.approx(0.1)


def test_a_model_without_top1_is_measured_without_labels(tiny_onnx, cache, images):
    with pytest.raises(UsageError) as caught:
        sensitivity(tiny_onnx, SAMPLES, _options(data=images), cache=cache, task="multilabel")
    assert caught.value.subject == "--data"


def test_without_labels_top1_is_null(by_block):
    answer = by_block.to_json()
    assert answer["float_top1"] is answer["int8"]["top1"] is None


def test_the_text_ranks_and_the_json_keeps_the_order(by_block):
    rows = by_block.to_text().splitlines()[-4:]
    shown = [row.split()[0] for row in rows]
    assert shown == [one.name for one in sorted(by_block.sensitivity, key=lambda one: one.only_int8.sqnr_db)]
    assert [one["name"] for one in by_block.to_json()["sensitivity"]] == [one.name for one in by_block.sensitivity]


@pytest.mark.slow
def test_what_a_recipe_keeps_float_is_reported_and_not_tried_and_the_figure_is_written(tiny_onnx, cache, tmp_path):
    path = tmp_path / "s.png"
    report = sensitivity(tiny_onnx, SAMPLES, _options("tensorrt"), out=path, cache=cache)
    assert report.file == path
    with Image.open(path) as image:
        assert image.size[0] > 1000
    assert "features.conv0" not in [one.name for one in report.sensitivity]
    assert any("features.conv0" in note for note in report.notes)


def test_a_report_becomes_a_figure_or_json(by_block):
    assert by_block.content(".svg").lstrip().startswith(b"<?xml")
    assert json.loads(by_block.content(".json"))["sensitivity"][1]["name"] == "features.denseblock1"


def test_the_figure_of_the_json_is_the_report_s_own(by_block, tmp_path):
    path = tmp_path / "s.json"
    path.write_bytes(by_block.content(".json"))
    drawn = plot("sqnr", PlotRequest((path,)), str(tmp_path / "s.svg"))
    assert drawn.file.read_bytes() == by_block.content(".svg")


def test_what_stands_in_the_way_survives(tiny_onnx, cache, tmp_path):
    path = tmp_path / "s.json"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        sensitivity(tiny_onnx, SAMPLES, _options(), out=path, cache=cache)
    assert path.read_text() == "mine"


def test_invalid_options_are_refused_before_the_work(tiny_onnx, tmp_path):
    with pytest.raises(UnknownNameError) as caught:
        SensitivityOptions(per="blok")
    assert caught.value.subject == "blok"
    with pytest.raises(UsageError) as caught:
        sensitivity(tiny_onnx, SAMPLES, _options(), out=tmp_path / "s.onnx")
    assert caught.value.subject == str(tmp_path / "s.onnx")


def test_a_figure_without_matplotlib_names_the_command(tiny_onnx, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError) as caught:
        sensitivity(tiny_onnx, SAMPLES, _options(), out=tmp_path / "s.png")
    assert caught.value.exit_code == 5

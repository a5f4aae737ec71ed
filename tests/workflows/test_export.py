"""The export road: what it writes and reports, what it refuses, and that a failed gate leaves no file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import onnx
import pytest
import torch

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import CheckpointError, GateError, OutputExistsError, UsageError
from densenet_deploy.workflows.export import ExportReport, ExportTarget, export_onnx
from densenet_deploy.workflows.load import ModelRequest, build
from tests.conftest import TINY

REQUEST = ModelRequest(architecture=TINY, num_classes=10)


@pytest.fixture(scope="module")
def again(tiny_onnx: Path) -> tuple[ExportReport, bytes, list[str]]:
    """Export once more over the file itself: the report, the bytes before, the stages heard of."""
    before, heard = tiny_onnx.read_bytes(), []
    return export_onnx(REQUEST, ExportTarget(out=str(tiny_onnx)), heard.append), before, heard


def test_the_same_export_replaces_itself_bit_for_bit(again):
    report, before, _ = again
    assert report.onnx.read_bytes() == before
    assert [path.name for path in report.onnx.parent.iterdir()] == ["tiny.onnx"]


def test_the_report_is_plain_json(again):
    report, _, _ = again
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert facts["onnx"] == str(report.onnx)
    assert (facts["weights"], facts["variant"]) == ("none", report.manifest.variant)
    assert facts["parameters"] == sum(p.numel() for p in build(REQUEST).module.parameters())
    assert facts["parity"]["cosine"] > 0.99999
    assert facts["seconds"] == pytest.approx(sum(facts["stages"].values()))
    assert facts["notes"] == ["untrained weights (random, seed 0): predictions mean nothing"]


def test_stages_are_heard_of_in_order_and_timed(again):
    report, _, heard = again
    assert heard == ["import", "build", "torch export", "simplify", "serialize", "parity", "write"]
    assert list(report.stages) == heard


def test_the_text_names_file_weights_and_parity(again):
    report, _, _ = again
    text = report.to_text()
    for part in (str(report.onnx), f"{report.parameters:,} parameters", "weights     none", "cosine"):
        assert part in text


def test_the_file_carries_its_facts(again):
    report, _, _ = again
    manifest = Artifact.open(report.onnx).manifest
    assert manifest == report.manifest
    assert set(manifest.tools) == {"densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim"}
    assert (manifest.precision, manifest.recipe, manifest.preprocessing.image_size) == ("fp32", None, 32)


def test_the_file_passes_the_onnx_checker(again):
    report, _, _ = again
    model = onnx.load(report.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "densenet-deploy"


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_classes": 9}, {"image_size": 64}, {"mean": (0.0, 0.0, 0.0)}])
def test_another_model_is_not_written_over_it(tiny_onnx, change):
    before = tiny_onnx.read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        export_onnx(dataclasses.replace(REQUEST, **change), ExportTarget(out=str(tiny_onnx)))
    assert tiny_onnx.read_bytes() == before


def test_a_failed_gate_leaves_no_file(checkpoint, tmp_path):
    """Weights that overflow float32 on the way: every one is finite, but no output is, and nothing is proved."""
    broken = torch.load(checkpoint, weights_only=True)
    broken["features.norm5.weight"][:] = 1e38
    broken["classifier.weight"][:] = 1e38
    torch.save(broken, tmp_path / "broken.pth")
    request = ModelRequest(weights=str(tmp_path / "broken.pth"))
    (tmp_path / "out").mkdir()
    with pytest.raises(GateError, match=r"does not match the module: .* NaN or infinite.*nothing was written"):
        export_onnx(request, ExportTarget(out=str(tmp_path / "out")))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["features.norm5.bias", "classifier.bias"])
def test_nonfinite_weights_are_refused_unless_let_in(checkpoint, tmp_path, name, value):
    broken = torch.load(checkpoint, weights_only=True)
    broken[name][0] = value
    torch.save(broken, tmp_path / "broken.pth")
    target = ExportTarget(out=str(tmp_path / "out/"))
    with pytest.raises(CheckpointError, match=re.escape(name)):
        export_onnx(ModelRequest(weights=str(tmp_path / "broken.pth")), target)
    report = export_onnx(ModelRequest(weights=str(tmp_path / "broken.pth"), allow_nonfinite=True), target)
    assert report.onnx.is_file()
    assert "were let in" in report.notes[-1]


@pytest.mark.parametrize("wrong", [{"opset": 15}, {"opset": 24}, {"batch": 0}, {"batch": 4097}])
def test_numbers_out_of_range_are_usage_errors(wrong):
    with pytest.raises(UsageError, match="out of range"):
        ExportTarget(**wrong)


def test_an_unknown_variant_is_refused_before_anything_is_imported(monkeypatch):
    monkeypatch.setattr("densenet_deploy.workflows.export.require_packages", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match="did you mean '121'"):
        export_onnx(ModelRequest(variant="122"))

"""Export: what it writes and reports, what it refuses, and that a failed gate leaves no file."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.errors import CheckpointError, GateError, OutputExistsError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from tests.conftest import TINY
from tests.foreign_networks import Encoding, written

NETWORK = {"architecture": TINY, "num_classes": 10}


@pytest.fixture(scope="module")
def again(tiny_onnx: Path) -> tuple[Model, bytes, list[str]]:
    """Export again over the file itself: the model, the bytes before, the stages that were announced."""
    before, heard = tiny_onnx.read_bytes(), []
    return export(out=tiny_onnx, progress=heard.append, **NETWORK), before, heard


def test_the_same_export_replaces_itself_bit_for_bit(again):
    model, before, _ = again
    assert model.path.read_bytes() == before
    assert [path.name for path in model.path.parent.iterdir()] == ["tiny.onnx"]


def test_the_report_is_plain_json(again):
    model, report = again[0], again[0].report
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert facts["onnx"] == str(report.onnx)
    assert (facts["weights"], facts["variant"]) == ("none", model.manifest.variant)
    assert facts["parameters"] == sum(p.numel() for p in load(**NETWORK).module.parameters())
    assert facts["parity"]["cosine"] > 0.99999
    assert facts["seconds"] == pytest.approx(sum(facts["stages"].values()))
    assert facts["notes"] == ["untrained weights (random, seed 0): predictions are meaningless"]


def test_stages_are_heard_of_in_order_and_timed(again):
    report, heard = again[0].report, again[2]
    assert heard == ["import", "build", "torch export", "simplify", "serialize", "parity", "write"]
    assert list(report.stages) == heard


def test_the_text_names_file_weights_and_parity(again):
    report = again[0].report
    text = report.to_text()
    for part in (str(report.onnx), f"{report.parameters:,} parameters", "weights     none", "cosine"):
        assert part in text


def test_the_file_carries_its_facts(again):
    model, _, _ = again
    manifest = Artifact.open(model.path).manifest
    assert manifest == model.manifest
    assert set(manifest.tools) == {"densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim"}
    assert (manifest.precision, manifest.recipe, manifest.preprocessing.image_size) == ("fp32", None, 32)


def test_the_file_passes_the_onnx_checker(again):
    model = onnx.load(again[0].path)
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "densenet-deploy"


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_classes": 9}, {"image_size": 64}, {"mean": (0.0, 0.0, 0.0)}])
def test_another_model_is_not_written_over_it(tiny_onnx, change):
    before = tiny_onnx.read_bytes()
    with pytest.raises(OutputExistsError):
        export(out=tiny_onnx, **(NETWORK | change))
    assert tiny_onnx.read_bytes() == before


def test_a_failed_gate_leaves_no_file(checkpoint, tmp_path):
    """Weights that overflow float32 on the way: every one is finite, but no output is, and nothing is proved."""
    broken = torch.load(checkpoint, weights_only=True)
    broken["features.norm5.weight"][:] = 1e38
    broken["classifier.weight"][:] = 1e38
    torch.save(broken, tmp_path / "broken.pth")
    (tmp_path / "out").mkdir()
    with pytest.raises(GateError) as caught:
        export(tmp_path / "broken.pth", out=tmp_path / "out")
    assert caught.value.exit_code == 4
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("features.norm5.bias", math.inf), ("classifier.bias", math.nan)])
def test_nonfinite_weights_are_refused_unless_let_in(checkpoint, tmp_path, name, value):
    broken = torch.load(checkpoint, weights_only=True)
    broken[name][0] = value
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError) as caught:
        export(tmp_path / "broken.pth", out=tmp_path / "out")
    assert name in caught.value.why
    model = export(tmp_path / "broken.pth", out=tmp_path / "out", allow_nonfinite=True)
    assert model.path == tmp_path / "out" / "broken.onnx"
    assert "were not compared" in model.report.notes[-1]


@pytest.mark.parametrize("wrong", [{"opset": 15}, {"opset": 24}, {"batch": 0}, {"batch": 4097}])
def test_numbers_out_of_range_are_usage_errors(wrong):
    with pytest.raises(UsageError):
        ExportOptions(**wrong)


def test_an_unknown_variant_is_refused_before_anything_heavy_is_imported():
    code = (
        "import sys, densenet_deploy as dd\n"
        "try: dd.export(variant='122')\n"
        "except dd.DensenetDeployError as e: print(e.subject, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["122", "False"]


def test_a_module_in_memory_is_exported_with_what_the_caller_states(tmp_path):
    """A network that is not a DenseNet of ours: the caller's facts travel, and nothing is written without `out`."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    ).eval()
    model = export(module, image_size=16, labels=("cat", "dog"), task="multilabel", mean=0.5, std=0.5)
    assert model.path is None
    assert (model.manifest.labels, model.manifest.task) == (("cat", "dog"), "multilabel")
    assert model.manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert set(model.manifest.assumed) == {"resize", "interpolation"}
    assert model.report.parity.cosine > 0.99999
    again = load(model.save(tmp_path / "pets.onnx"))
    assert again.manifest == model.manifest


def test_an_onnx_graph_is_adopted_with_its_facts(torchvision_onnx, tmp_path):
    model = export(torchvision_onnx, out=tmp_path / "adopted.onnx", labels=tuple("abcdefghij"), mean=0.5)
    artifact = Artifact.open(model.path)
    assert artifact.manifest.labels == tuple("abcdefghij")
    assert artifact.manifest.assumed == ("resize", "interpolation", "std")
    assert model.report.parity.cosine > 0.99999


def test_a_graph_of_another_exporter_is_written_beside_its_file(tmp_path):
    path = tmp_path / "zoo.onnx"
    onnx.save(written(Encoding(opset=9, weights="inputs", norm="caffe")), path)
    result = export(path, out=f"{tmp_path}/")
    assert result.path == tmp_path / "zoo.exported.onnx"
    assert result.manifest.weights.sha256 == sha256_of(path)
    assert result.report.notes[:2] == (
        "78 weights that were listed as inputs are constants",
        "operator set 9 was lifted to 13",
    )
    kinds = {node.op_type for node in result.onnx.graph.node}
    assert not {"Mul", "Add", "Unsqueeze"} & kinds
    assert load(result.path).notes == ()


def test_every_output_of_a_module_is_compared():
    """The second output is what a wrong graph would spoil; both are reported, the worst as the parity."""

    class TwoHeads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, images):
            maps = self.conv(images)
            return maps.mean((2, 3)), maps.amax((2, 3))

    report = export(TwoHeads().eval(), image_size=8).report
    assert len(report.outputs) == 2
    assert report.parity == min(report.outputs.values(), key=lambda parity: parity.sqnr_db)


def test_a_graph_cannot_be_given_another_batch(tiny_onnx):
    with pytest.raises(UsageError) as caught:
        export(tiny_onnx, ExportOptions(batch=4))
    assert caught.value.subject == "batch=4"

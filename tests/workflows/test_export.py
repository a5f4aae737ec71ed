"""Export: what it writes and reports, what it refuses, and that a failed gate leaves no file."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
import torchvision
from onnx import numpy_helper

from densenet_deploy.artifacts import Artifact, sha256_of
from densenet_deploy.errors import CheckpointError, GateError, MissingPackageError, OutputExistsError, UsageError
from densenet_deploy.model import Model
from densenet_deploy.workflows.export import ExportOptions, export
from densenet_deploy.workflows.load import load
from tests.conftest import TINY
from tests.foreign_networks import Encoding, written
from tests.models.test_lower import assert_same

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
    assert facts["reference"] == "PyTorch on 8x3x32x32"
    assert facts["notes"] == ["untrained weights (random, seed 0): predictions are meaningless"]


def test_stages_are_heard_of_in_order_and_timed(again):
    report, heard = again[0].report, again[2]
    assert heard == ["import", "build", "lower", "serialize", "parity", "write"]
    assert list(report.stages) == heard


def test_the_text_names_file_weights_and_parity(again):
    report = again[0].report
    text = report.to_text()
    for part in (
        str(report.onnx),
        f"{report.parameters:,} parameters",
        "weights     none",
        "reference   PyTorch on 8x3x32x32",
        "cosine",
    ):
        assert part in text


def test_the_file_carries_its_facts(again):
    model, _, _ = again
    manifest = Artifact.open(model.path).manifest
    assert manifest == model.manifest
    assert set(manifest.tools) == {"densenet-deploy", "onnx"}
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


@pytest.mark.parametrize("wrong", [{"opset": 15}, {"opset": 24}, {"batch": 0}, {"batch": 4097}, {"exporter": "onnx"}])
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
    assert model.report.reference == "the original file on 4x3x32x32"
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


@pytest.mark.parametrize("option", [{"batch": 4}, {"exporter": "torch"}])
def test_a_graph_cannot_be_given_another_batch_or_exporter(tiny_onnx, option):
    with pytest.raises(UsageError) as caught:
        export(tiny_onnx, ExportOptions(**option))
    ((name, value),) = option.items()
    assert caught.value.subject == f"{name}={value}"


@pytest.mark.slow
def test_pytorchs_exporter_writes_the_same_graph(again):
    """The files differ in the versions of the tools alone, which are those that made them."""
    model = export(None, ExportOptions(exporter="torch"), **NETWORK)
    assert list(model.report.stages)[2:4] == ["torch export", "simplify"]
    assert set(model.manifest.tools) == {"densenet-deploy", "torch", "onnx", "onnxscript", "onnxsim"}
    tools = again[0].manifest.tools
    same = dataclasses.replace(model.manifest, tools=tools)
    assert same == again[0].manifest
    assert_same(again[0].onnx, Model.from_onnx("tiny", model.onnx, same).onnx)


def test_what_is_not_a_densenet_of_ours_cannot_be_written_directly():
    with pytest.raises(UsageError) as caught:
        export(torch.nn.Conv2d(3, 4, 3), ExportOptions(exporter="direct"), image_size=8)
    assert caught.value.subject == "exporter=direct"


@pytest.mark.parametrize("package", ["torch", "onnxscript", "onnxsim"])
def test_the_packages_of_pytorchs_exporter_are_named_when_missing(monkeypatch, package):
    export(**NETWORK)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        export(None, ExportOptions(exporter="torch"), **NETWORK)
    assert caught.value.subject == package


def torchvision_net(epsilon: float = 1e-5) -> torch.nn.Module:
    module = torchvision.models.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=5).eval()
    for inner in module.modules():
        if isinstance(inner, torch.nn.BatchNorm2d):
            inner.eps = epsilon
    return module


def test_a_module_of_torchvision_is_written_with_our_names():
    model = export(torchvision_net(), image_size=32)
    assert "lower" in model.report.stages
    assert [node.name for node in model.onnx.graph.node][-4:] == [
        "head.relu",
        "head.pool",
        "head.flatten",
        "classifier",
    ]
    assert model.report.parity.sqnr_db > 100


def test_a_module_with_another_epsilon_is_traced():
    """Its outputs are those of ours up to rounding, and its file would be another one."""
    assert load(torchvision_net()).weights is not None
    assert load(torchvision_net(1.001e-5)).spec is not None
    assert load(torchvision_net(1.001e-5)).weights is None


def test_a_weight_that_changes_after_loading_is_the_one_that_is_written():
    model = load(**NETWORK)
    with torch.no_grad():
        model.module.classifier.bias.copy_(torch.arange(10.0))
    weights = {tensor.name: tensor for tensor in export(model).onnx.graph.initializer}
    assert numpy_helper.to_array(weights["classifier.bias"]).tolist() == list(range(10))


class TestWithoutPyTorch:
    """In a process that cannot import PyTorch, nor what its exporter needs, from files that PyTorch wrote."""

    CODE = """
import sys
blocked = {"torch", "torchvision", "onnxscript", "onnxsim", "onnx_ir", "safetensors"}
sys.modules |= dict.fromkeys(blocked)
from densenet_deploy.cli import main
code = main(sys.argv[1:])
assert not [name for name in sys.modules if name.partition(".")[0] in blocked and sys.modules[name] is not None]
sys.exit(code)
"""

    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", self.CODE, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @pytest.fixture
    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        return torch.load(checkpoint, weights_only=True)

    @pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
    def test_a_checkpoint_is_exported_as_with_it(self, weights, tmp_path, name):
        file = tmp_path / name
        if file.suffix == ".pth":
            torch.save(weights, file)
        else:
            safetensors.torch.save_file(weights, file)
        expected = export(file)
        done = self._run("export", file, "-o", tmp_path / "mine.onnx", "--json")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        _, height, width = expected.manifest.preprocessing.shape
        assert facts["reference"] == f"NumPy on 2x3x{height}x{width}"
        assert facts["parity"]["cosine"] > 0.999999
        assert facts["parameters"] == expected.report.parameters
        assert facts["weights_sha256"] == expected.report.weights_sha256
        assert (tmp_path / "mine.onnx").read_bytes() == expected.to_bytes()

    def test_weights_that_prove_nothing_leave_no_file(self, weights, tmp_path):
        broken = {name: tensor.clone() for name, tensor in weights.items()}
        broken["features.norm5.weight"][:] = 1e38
        broken["classifier.weight"][:] = 1e38
        torch.save(broken, tmp_path / "broken.pth")
        done = self._run("export", tmp_path / "broken.pth", "-o", tmp_path / "broken.onnx")
        assert done.returncode == 4
        assert not (tmp_path / "broken.onnx").exists()

    @pytest.mark.parametrize("arguments", [("121",), ("mine.pth", "--exporter", "torch")])
    def test_what_needs_pytorch_says_so(self, weights, tmp_path, monkeypatch, arguments):
        torch.save(weights, tmp_path / "mine.pth")
        monkeypatch.chdir(tmp_path)
        done = self._run("export", *arguments)
        assert done.returncode == 5
        assert "torch" in done.stderr

"""Simplify: a third-party file becomes simpler and computes the same; a result that does not is not written."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.artifacts import Artifact
from densenet_deploy.errors import GateError, ModelFileError, OutputExistsError
from densenet_deploy.graph.graph_pass import EXACT
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.workflows.simplify import SimplifyReport, finished, simplify

HEADER = '<ir_version: 9, opset_import: ["" : 17]>'


@pytest.fixture(scope="module")
def third_party(torchvision_onnx: Path) -> SimplifyReport:
    """The report of simplifying torchvision's export, written beside it."""
    return simplify(torchvision_onnx, out=torchvision_onnx.parent).report


def test_a_third_party_file_gets_simpler(third_party):
    assert third_party.onnx.name == "third_party.simplified.onnx"
    assert third_party.to_json()["nodes_after"] < third_party.to_json()["nodes_before"]
    changed = {summary.name: summary.changed for summary in third_party.passes}
    assert changed["fold-batchnorm"] == 5  # the stem's norm and the second norm of each of four layers
    assert third_party.operators_after["BatchNormalization"] == third_party.operators_before["BatchNormalization"] - 5


def test_it_computes_the_same(third_party, torchvision_onnx):
    batch = np.random.default_rng(1).standard_normal((3, 3, 32, 32), np.float32)
    with open_runner(torchvision_onnx) as before, open_runner(third_party.onnx) as after:
        assert before.inputs == after.inputs
        expected, got = before.run({"pixels": batch}), after.run({"pixels": batch})
    # each folded weight is rounded once more: a few float32 ulps of scores near 1
    np.testing.assert_allclose(got["scores"], expected["scores"], rtol=1e-5, atol=1e-5)
    assert third_party.parity.cosine > 0.99999


def test_it_carries_what_the_graph_shows_and_its_own_name(third_party, torchvision_onnx):
    manifest = Artifact.open(third_party.onnx).manifest
    assert (manifest.variant, manifest.preprocessing.shape) == ("third-party", (3, 32, 32))
    assert manifest.assumed == ("resize", "interpolation", "mean", "std")
    assert onnx.load(third_party.onnx).graph.name == onnx.load(torchvision_onnx).graph.name


def test_a_finished_file_says_what_made_it_and_holds_its_weights_in_the_order_of_their_use():
    stored = "float[1] b = {2}, float[1] a = {1}, float[1] unused = {3}"
    graph = f"g (float[1] x) => (float[1] y) <{stored}> {{ t = Add(x, a)  u = Add(t, b)  y = Add(u, a) }}"
    proto = finished(onnx.parser.parse_model(f"{HEADER} {graph}"), "mine")
    assert [tensor.name for tensor in proto.graph.initializer] == ["a", "b", "unused"]
    assert (proto.graph.name, proto.producer_name) == ("mine", "densenet-deploy")
    assert proto.producer_version == version("densenet-deploy")


def test_what_the_checker_refuses_is_not_finished():
    proto = onnx.parser.parse_model(f"{HEADER} g (float[1] x) => (float[2] y) {{ y = Relu(x) }}")
    with pytest.raises(ModelFileError) as caught:
        finished(proto, "mine")
    assert caught.value.subject == "mine"


def test_the_report_is_plain_json_and_readable(third_party):
    facts = json.loads(json.dumps(third_party.to_json(), allow_nan=False))
    assert facts["nodes_before"] == sum(facts["operators_before"].values())
    assert [report["name"] for report in facts["passes"]] == list(EXACT)
    assert "fold-batchnorm: 5 changed" in third_party.to_text()


def test_a_foreign_output_is_replaced_only_by_force(third_party, torchvision_onnx, tmp_path):
    before = third_party.onnx.read_bytes()
    simplify(torchvision_onnx, out=third_party.onnx)  # the same model again
    assert third_party.onnx.read_bytes() == before
    other = tmp_path / "other.onnx"
    other.write_bytes(torchvision_onnx.read_bytes())
    with pytest.raises(OutputExistsError):
        simplify(torchvision_onnx, out=other)
    simplify(torchvision_onnx, out=other, force=True)
    assert other.read_bytes() == before


def test_our_own_export_has_nothing_left_to_fold_and_keeps_its_facts(tiny_onnx, tmp_path):
    report = simplify(tiny_onnx, out=tmp_path / "again.onnx").report
    assert not any(done.changed for done in report.passes)
    assert report.operators_before == report.operators_after
    assert Artifact.open(report.onnx).manifest == Artifact.open(tiny_onnx).manifest


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.parser.parse_model(HEADER + text).SerializeToString())
    return path


def test_what_computes_something_else_is_not_written(tmp_path):
    """Beside 10⁸, which is added and taken off again, float32 keeps nothing of a pixel; both left out, it keeps all."""
    nodes = "a = Add(x, large)  b = Add(a, small)  p = GlobalAveragePool(b)  y = Flatten(p)"
    values = "float[1,1,1] large = {100000000}, float[1,1,1] small = {-100000000}"
    text = f"g (float[N,3,4,4] x) => (float[N,3] y) <{values}> {{ {nodes} }}"
    with pytest.raises(GateError):
        simplify(_file(tmp_path, text), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    "inputs", ["float[N,4,4,3] x", "float[N,3,4,5] x", "float[N,48] x", "float[N,3,4,4] x, float[N,3,4,4] z"]
)
def test_what_takes_no_images_is_refused(tmp_path, inputs):
    path = _file(tmp_path, f"g ({inputs}) => (float[M] y) {{ f = Flatten(x)  y = ReduceMax<keepdims=0>(f) }}")
    with pytest.raises(ModelFileError):
        simplify(path, out=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_shapes_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ModelFileError):
        simplify(_file(tmp_path, "g (float[N,3,4,4] x) => (float[M] y) { y = Relu(x) }"))

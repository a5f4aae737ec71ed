"""Graphs as files and in memory: adopted with the facts that they carry."""

import hashlib

import onnx
import onnx_ir
import pytest
import torch.onnx
from onnx import TensorProto, helper

from densenet_deploy.errors import InputError, ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.sources import Match, WeightsConstraint, load
from densenet_deploy.sources.graph import GraphSource
from densenet_deploy.variants import find_variant
from tests.foreign_networks import Encoding, written


@pytest.fixture
def proto():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "main_graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_file_without_facts_is_an_unknown_network(tmp_path, proto):
    onnx.save(proto, tmp_path / "chest.onnx")
    loaded = load(tmp_path / "chest.onnx")
    assert (loaded.name, loaded.module, loaded.variant, loaded.manifest) == ("chest", None, None, None)
    assert loaded.artifact.path == tmp_path / "chest.onnx"


@pytest.mark.parametrize("given", [bytes, bytearray, memoryview, None], ids=str)
def test_a_graph_in_memory_is_taken_with_its_facts(model, proto, given):
    origin = WeightsOrigin("there.pth", "00")
    manifest = Manifest("mine", model.spec.to_facts(), origin, Preprocessing(image_size=32, resize=40), tuple("abcde"))
    helper.set_model_props(proto, manifest.to_strings())
    loaded = load(proto if given is None else given(proto.SerializeToString()))
    assert (loaded.name, loaded.manifest, loaded.labels) == ("model", manifest, tuple("abcde"))
    assert loaded.artifact.data == proto.SerializeToString()


def test_graphs_of_onnx_ir_and_of_torchs_exporter_are_taken(proto):
    as_ir = onnx_ir.from_proto(proto)
    for given in (as_ir, torch.onnx.ONNXProgram(as_ir, None)):
        assert GraphSource().matches(given) is Match.CERTAIN
        assert [node.op_type for node in load(given).graph.graph.node] == ["Relu"]


def test_a_graph_of_another_exporter_is_adopted(tmp_path):
    onnx.save(written(Encoding(opset=9, weights="inputs")), tmp_path / "old.onnx")
    loaded = load(tmp_path / "old.onnx")
    assert loaded.name == "old"
    assert loaded.notes == (
        "56 weights that were listed as inputs are constants",
        "operator set 9 was lifted to 13",
    )
    assert loaded.graph.opset_import[0].version == 13
    assert loaded.artifact.path == tmp_path / "old.onnx"
    assert loaded.artifact.data == loaded.graph.SerializeToString()
    assert loaded.artifact.original.data is None
    assert loaded.artifact.sha256() == hashlib.sha256((tmp_path / "old.onnx").read_bytes()).hexdigest()


def test_a_graph_that_needs_no_change_stays_the_file(tmp_path):
    onnx.save(written(Encoding(opset=17)), tmp_path / "plain.onnx")
    loaded = load(tmp_path / "plain.onnx")
    assert (loaded.notes, loaded.artifact.data, loaded.artifact.original) == ((), None, None)
    assert loaded.graph == onnx.load(tmp_path / "plain.onnx")


def test_a_file_of_ours_is_not_looked_at(tmp_path):
    proto = written(Encoding(opset=9))
    helper.set_model_props(proto, Manifest("mine", {}, WeightsOrigin("there.pth", "00"), Preprocessing()).to_strings())
    onnx.save(proto, tmp_path / "ours.onnx")
    loaded = load(tmp_path / "ours.onnx")
    assert (loaded.graph, loaded.notes, loaded.artifact.data) == (None, (), None)


@pytest.mark.parametrize("package", ["onnx", "onnx_ir"])
def test_without_the_onnx_packages_a_file_is_used_as_it_is(tmp_path, monkeypatch, package):
    onnx.save(written(Encoding(opset=9)), tmp_path / "old.onnx")
    monkeypatch.setattr("densenet_deploy.sources.graph.is_installed", lambda name: name != package)
    loaded = load(tmp_path / "old.onnx")
    assert (loaded.graph, loaded.notes, loaded.artifact.data) == (None, (), None)


def test_a_missing_file_and_other_bytes_are_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nothing.onnx")
    assert caught.value.subject == str(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError):
        load(b"no graph")


@pytest.mark.parametrize(
    ("stated", "subject"),
    [
        ({"num_classes": 3}, "num-classes=3"),
        ({"head": "features"}, "head=features"),
        ({"variant": find_variant("169")}, "variant=169"),
        ({"architecture": {"growth_rate": 16}}, "growth-rate=16"),
    ],
)
def test_a_graph_cannot_be_given_another_architecture(proto, stated, subject):
    with pytest.raises(UsageError) as caught:
        load(proto, WeightsConstraint(**stated))
    assert caught.value.subject == subject


@pytest.mark.parametrize(
    ("source", "match"),
    [
        *((f"m{suffix}", Match.CERTAIN) for suffix in (".onnx", ".xml", ".engine", ".ONNX")),
        *((other, Match.NO) for other in ("m.pth", "onnx", "121", 3, object())),
        *((data, Match.CERTAIN) for data in (b"1", bytearray(b"1"), memoryview(b"1"), onnx.ModelProto())),
    ],
)
def test_a_suffix_or_bytes_make_a_graph(source, match):
    assert GraphSource().matches(source) is match


def test_a_file_brings_its_facts_and_keeps_its_name(tmp_path, proto):
    manifest = Manifest("mine", {}, WeightsOrigin("there.pth", "00"), Preprocessing(), tuple("abcde"))
    helper.set_model_props(proto, manifest.to_strings())
    onnx.save(proto, tmp_path / "chest.onnx")
    loaded = load(str(tmp_path / "chest.onnx"))
    assert (loaded.name, loaded.manifest, loaded.labels) == ("chest", manifest, tuple("abcde"))

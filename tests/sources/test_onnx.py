"""ONNX files and graphs in memory: adopted with the facts that they carry."""

import onnx
import pytest
from onnx import TensorProto, helper

from densenet_deploy.errors import ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.sources import WeightsConstraint, load


@pytest.fixture
def proto():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "main_graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def described(proto, manifest):
    helper.set_model_props(proto, manifest.to_strings())
    return proto


def test_a_file_without_facts_is_an_unknown_network(tmp_path, proto):
    onnx.save(proto, tmp_path / "chest.onnx")
    loaded = load(tmp_path / "chest.onnx")
    assert (loaded.name, loaded.module, loaded.variant, loaded.manifest) == ("chest", None, None, None)
    assert loaded.proto == proto
    assert (loaded.output_names, loaded.origin.source) == (("y",), "chest.onnx")


def test_facts_in_the_file_are_read(model, proto):
    origin = WeightsOrigin("there.pth", "00")
    manifest = Manifest("mine", model.spec.to_facts(), origin, Preprocessing(image_size=32, resize=40), tuple("abcde"))
    loaded = load(described(proto, manifest))
    assert (loaded.manifest, loaded.origin, loaded.labels) == (manifest, origin, tuple("abcde"))
    assert loaded.variant.spec == model.spec
    assert loaded.name == "main_graph"


def test_facts_of_a_network_that_is_not_a_densenet_leave_the_variant_open(proto):
    manifest = Manifest("resnet50", {}, WeightsOrigin("there.pth", "00"), Preprocessing())
    assert load(described(proto, manifest)).variant is None


def test_a_broken_graph_in_memory_is_refused(proto):
    proto.graph.node[0].op_type = "Rleu"
    with pytest.raises(ModelFileError) as caught:
        load(proto)
    assert caught.value.subject == "main_graph"


def test_a_graph_cannot_be_constrained(proto):
    with pytest.raises(UsageError):
        load(proto, WeightsConstraint(num_classes=3))

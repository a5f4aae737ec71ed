"""Graphs as files and in memory: adopted with the facts that they carry."""

import onnx
import pytest
from onnx import TensorProto, helper

from densenet_deploy.errors import InputError, ModelFileError, UsageError
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.sources import WeightsConstraint, load
from densenet_deploy.variants import find_variant


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
    assert loaded.artifact.data is not None


def test_a_missing_file_and_other_bytes_are_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nothing.onnx")
    assert caught.value.subject == str(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError):
        load(b"no graph")


@pytest.mark.parametrize("stated", [{"num_classes": 3}, {"head": "features"}, {"variant": find_variant("121")}])
def test_a_graph_cannot_be_given_another_architecture(proto, stated):
    with pytest.raises(UsageError):
        load(proto, WeightsConstraint(**stated))

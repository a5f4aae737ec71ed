"""Which source takes what, what nobody takes, and untrained networks by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.errors import CheckpointError, InputError, UnknownNameError, UsageError
from densenet_deploy.sources import Match, WeightsConstraint, load, source_for, sources
from densenet_deploy.variants import find_variant, variant_for


def kind_of(source):
    return type(source_for(source)).__name__


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("none", "UntrainedSource"),
        ("121", "UntrainedSource"),
        ("DenseNet-169", "UntrainedSource"),
        ("cifar-bc-40-12", "UntrainedSource"),
        ("imagenet", "TorchvisionSource"),
        ("DenseNet169_Weights.IMAGENET1K_V1", "TorchvisionSource"),
        ("mine.pth", "FileSource"),
        (Path("mine.SAFETENSORS"), "FileSource"),
        ("mine.onnx", "GraphSource"),
        ("mine.engine", "GraphSource"),
        (b"bytes", "GraphSource"),
    ],
)
def test_a_name_or_suffix_decides_the_source(source, kind):
    assert kind_of(source) == kind


def test_a_public_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert kind_of("imagenet") == "TorchvisionSource"


def test_an_existing_file_of_another_suffix_is_refused_as_a_file(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "weights.h5")
    assert caught.value.subject == str(tmp_path / "weights.h5")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nothing.pth")
    assert caught.value.subject == str(tmp_path / "nothing.pth")


@pytest.mark.parametrize(("name", "nearest"), [("imagenette", "imagenet"), ("1211", "121"), ("cifar-bc-100", "cifar")])
def test_an_unknown_name_lists_what_is_possible(name, nearest):
    with pytest.raises(UnknownNameError) as caught:
        load(name)
    assert caught.value.subject == name
    assert f"did you mean '{nearest}" in caught.value.fix


def test_a_name_of_a_family_with_impossible_numbers_names_the_nearest_depth():
    with pytest.raises(UsageError) as caught:
        load("cifar-41-12")
    assert "40" in caught.value.fix


@pytest.mark.parametrize("source", [None, 3, ["a.pth"], object()])
def test_other_types_are_not_sources(source):
    with pytest.raises(UsageError) as caught:
        load(source)
    assert caught.value.subject == type(source).__name__


def test_every_source_says_no_to_what_it_does_not_know():
    assert {kind().matches(object()) for kind in sources.items().values()} == {Match.NO}


def test_no_weights_mean_a_fixed_seed_and_the_origin_says_so():
    constraint = WeightsConstraint(variant=find_variant("cifar-40-12"), num_classes=3, head="features")
    loaded = load("none", constraint)
    assert (loaded.origin.source, loaded.origin.seed, loaded.origin.is_trained) == ("none", 0, False)
    assert (loaded.variant.spec.num_classes, loaded.variant.spec.head) == (3, "features")
    assert loaded.output_names == ("features",)
    assert loaded.name == "densenet-cifar-40-12"
    assert loaded.origin.sha256 == load("cifar-40-12", WeightsConstraint(head="features")).origin.sha256
    assert loaded.origin.sha256 != load("cifar-40-12", WeightsConstraint(head="features", seed=1)).origin.sha256


def test_a_custom_architecture_is_built(model):
    loaded = load("none", WeightsConstraint(variant=variant_for(model.spec), seed=3))
    assert loaded.module.spec == loaded.variant.spec == model.spec
    assert loaded.variant.name.startswith("custom-")


def test_two_variants_contradict_each_other():
    with pytest.raises(UsageError) as caught:
        load("169", WeightsConstraint(variant=find_variant("121")))
    assert caught.value.subject == "169"


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"head": "tail"}])
def test_constraints_are_checked_when_they_are_made(wrong):
    with pytest.raises(UsageError):
        WeightsConstraint(**wrong)


def test_an_onnx_file_is_loaded_without_torch(tmp_path):
    code = """
import sys, onnx
from onnx import TensorProto, helper
from densenet_deploy.sources import load
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [value("x")], [value("y")])
loaded = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
assert loaded.artifact.kind == "onnx"
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Checkpoints in every wrapping, and which of those that do not fit is refused how."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from densenet_deploy.errors import CheckpointError, ManifestError, MissingPackageError, install_command
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.models.build import build_model
from densenet_deploy.sources import CheckpointFormat, Match, WeightsConstraint, formats, load
from densenet_deploy.sources.file import FileSource, save_weights
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


ASSUMED = "assumed: conv0 stride 1, no pool, ReLU, global average pool; verify with --check FILE.npz"


def refusal(source, **constraint):
    """The error that loading `source` under `constraint` ends in; it names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(source, WeightsConstraint(**constraint))
    assert caught.value.subject == source
    return caught.value


def manifest_of(model, **changes):
    origin = WeightsOrigin("there.pth", "00")
    labels = tuple("abcde")
    manifest = Manifest("mine", model.spec.to_facts(), origin, Preprocessing(image_size=32, resize=40), labels)
    return dataclasses.replace(manifest, **changes)


def same_weights(one, other):
    return weights_sha256(one.state_dict()) == weights_sha256(other.state_dict())


@pytest.mark.parametrize(
    ("name", "match"),
    [
        *((f"gone{suffix}", Match.CERTAIN) for suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".PTH")),
        *((f"gone.{name}", Match.CERTAIN) for name in ("pth.tar", "pt.bak", "ckpt.1", "PTH.TAR")),
        *(("gone.pth.onnx", Match.NO), ("gone.tar", Match.NO), ("gone.bin.tar", Match.NO)),
        *(("gone.h5", Match.NO), ("there.h5", Match.POSSIBLE), ("there", Match.POSSIBLE)),
        *(("there.onnx", Match.NO), ("there.JSON", Match.NO), ("gone.onnx", Match.NO)),
    ],
)
def test_a_suffix_makes_a_checkpoint_and_so_may_any_other_file(tmp_path, name, match):
    for there in ("there.h5", "there", "there.onnx", "there.JSON"):
        (tmp_path / there).touch()
    assert FileSource().matches(tmp_path / name) is match
    assert FileSource().matches(str(tmp_path / name)) is match


@pytest.mark.parametrize("wrap", [dict, lambda state: {"epoch": 3, "state_dict": dict(state)}], ids=["bare", "wrapped"])
def test_a_state_dict_in_memory_is_a_checkpoint_that_its_owner_keeps(model, wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("[]")  # of something else that lies here
    state = model.state_dict()
    loaded = load(wrap(state))
    assert (loaded.name, loaded.variant.spec, loaded.origin.source) == ("state_dict", model.spec, "state_dict")
    assert same_weights(loaded.module, model)
    before = weights_sha256(loaded.module.state_dict())
    with torch.no_grad():
        state["classifier.bias"] += 1
    assert weights_sha256(loaded.module.state_dict()) == before
    assert loaded.weights["classifier.bias"].tolist() == loaded.module.classifier.bias.tolist()


def test_arrays_of_a_state_dict_are_weights(model):
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    loaded = load(arrays)
    assert same_weights(loaded.module, model)
    assert not np.shares_memory(loaded.weights["classifier.bias"], arrays["classifier.bias"])


def test_a_dictionary_without_weights_is_refused_by_name():
    with pytest.raises(CheckpointError) as caught:
        load({"epoch": 3})
    assert str(caught.value.subject) == "state_dict"


def test_other_types_are_no_files():
    assert FileSource().matches(b"a.pth") is Match.NO


def test_pytorch_is_named_where_it_alone_could_read_the_file(monkeypatch, tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError) as caught:
        FileSource().load(tmp_path / "old.pth", WeightsConstraint())
    assert caught.value.subject == "torch"
    assert install_command("export") in caught.value.fix


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_without_pytorch_a_network_is_its_weights(monkeypatch, tmp_path, model, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    expected = load(str(path))
    monkeypatch.setitem(sys.modules, "torch", None)
    loaded = load(str(path))
    assert (loaded.module, expected.module is None) == (None, False)
    assert dataclasses.replace(loaded, weights=None) == dataclasses.replace(expected, module=None, weights=None)
    assert loaded.weights.keys() == expected.weights.keys()
    for weight, array in loaded.weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, model.state_dict()[weight])


def test_weights_without_pytorch_are_refused_as_with_it(monkeypatch, tmp_path, model):
    state = model.state_dict()
    state["features.norm5.bias"][0] = math.nan
    torch.save(state, tmp_path / "nan.pth")
    del state["features.norm5.bias"]
    torch.save(state, tmp_path / "incomplete.pth")
    refusals = []
    for missing in (False, True):
        if missing:
            monkeypatch.setitem(sys.modules, "torch", None)
        for name in ("nan.pth", "incomplete.pth"):
            with pytest.raises(CheckpointError) as caught:
                load(str(tmp_path / name))
            refusals.append((caught.value.why, caught.value.fix))
    assert refusals[:2] == refusals[2:]


def test_the_weights_are_those_of_the_module(save, model):
    loaded = load(save(model.state_dict()))
    assert {name for name in model.state_dict() if "num_batches" not in name} == set(loaded.weights)
    with torch.no_grad():
        loaded.module.classifier.bias.fill_(7.0)
    assert loaded.weights["classifier.bias"].tolist() == [7.0] * 5


def test_variant_classes_and_head_are_read_from_the_file(save, model):
    loaded = load(save(model.state_dict()))
    assert (loaded.name, loaded.variant.spec) == ("weights", model.spec)
    assert loaded.origin == WeightsOrigin("weights.pth", weights_sha256(model.state_dict()))
    assert (loaded.manifest, loaded.labels, loaded.facts) == (None, (), ModelFacts(channels=3))
    assert (loaded.output_names, loaded.notes) == (("logits",), (ASSUMED,))
    assert not loaded.module.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["cifar-7-2", "cifar-bc-10-4"])
def test_a_named_variant_is_recognized(save, name):
    loaded = load(save(build_model(find_variant(name).spec).state_dict()))
    assert loaded.variant == find_variant(name)


def test_dropout_of_a_given_spec_is_kept(save, model):
    spec = dataclasses.replace(model.spec, drop_rate=0.2)
    assert load(save(model.state_dict()), WeightsConstraint(variant=variant_for(spec))).module.spec.drop_rate == 0.2


def test_the_same_weights_hash_equal_in_every_file(tmp_path, save, model):
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "library.safetensors")
    save_weights(tmp_path / "ours.safetensors", model, manifest_of(model))
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    files = [save(state), *(str(tmp_path / name) for name in ("library.safetensors", "ours.safetensors", "legacy.pth"))]
    assert {load(file).origin.sha256 for file in files} == {weights_sha256(state)}


def test_another_value_is_another_hash(save, model):
    before = load(save(model.state_dict())).origin.sha256
    model.classifier.bias.data[0] += 1
    assert load(save(model.state_dict())).origin.sha256 != before


def test_a_safetensors_file_brings_its_manifest(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model))
    loaded = load(path)
    assert (loaded.variant.name, loaded.variant.preprocessing.resize, loaded.labels) == ("mine", 40, tuple("abcde"))
    assert loaded.manifest == manifest_of(model)
    assert loaded.origin == WeightsOrigin("mine.safetensors", weights_sha256(model.state_dict()))
    assert not any("num_batches_tracked" in name for name in safetensors.torch.load_file(path))
    asked = load(path, WeightsConstraint(variant=variant_for(model.spec)))
    assert asked.variant.preprocessing.resize == 40


def test_untrained_weights_stay_untrained_in_a_file(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model, weights=WeightsOrigin("none", "00", 3)))
    assert load(path).origin == WeightsOrigin("none", weights_sha256(model.state_dict()), 3)


def test_the_preprocessing_of_a_file_is_that_of_its_own_architecture(tmp_path, model):
    """Another compression that gives the same channels is another architecture."""
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model))
    other = variant_for(dataclasses.replace(model.spec, compression=0.501))
    assert load(path, WeightsConstraint(variant=other)).variant == other


def test_a_requested_variant_is_not_that_of_the_file(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model))
    assert "densenet-cifar-7-2" in refusal(str(path), variant=find_variant("cifar-7-2")).why


@pytest.mark.parametrize("name", ["growth_rate", "bn_size", "compression", "stem"])
def test_numbers_that_a_file_states_otherwise_are_refused(tmp_path, model, name):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model))
    own = getattr(model.spec, name)
    assert load(path, WeightsConstraint(architecture={name: own})).module.spec == model.spec
    other = {"growth_rate": 5, "bn_size": 3, "compression": 0.501, "stem": "imagenet"}[name]
    option = f"--{name.replace('_', '-')}"
    assert refusal(str(path), architecture={name: other}).why == f"is mine, but {option} asks for another network"


def test_dropout_may_be_added_to_what_a_file_states(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model))
    loaded = load(path, WeightsConstraint(architecture={"drop_rate": 0.2}))
    assert (loaded.module.spec.drop_rate, loaded.variant.name) == (0.2, "mine")


def test_a_manifest_that_lies_about_the_architecture_is_refused(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model, spec=DenseNetSpec(num_classes=5).to_facts()))
    assert "densenet-mine" in refusal(str(path)).why
    save_weights(path, model, manifest_of(model, spec={"growth_rate": 4}))
    with pytest.raises(ManifestError) as caught:
        load(path)
    assert caught.value.subject == "spec.blocks"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_09_nonfinite_weights_are_named_and_counted(save, model, value):
    state = model.state_dict()
    state["features.conv0.weight"][0, 0, 0, :2] = value
    state["classifier.bias"][1] = value
    why = refusal(save(state)).why
    assert all(part in why for part in ("3 NaN or Inf", "2 of its tensors", "features.conv0.weight"))
    assert load(save(state), WeightsConstraint(allow_nonfinite=True)).origin.is_trained


def test_10_a_wrong_class_count_names_both(save, model):
    why = refusal(save(model.state_dict()), num_classes=1000).why
    assert why == "has 5 classes, but --num-classes asks for 1000"
    assert load(save(model.state_dict()), WeightsConstraint(num_classes=5)).variant.spec.num_classes == 5
    features = build_model(dataclasses.replace(model.spec, head="features")).state_dict()
    assert refusal(save(features), num_classes=5).why == "has no classifier, but --num-classes asks for 5"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"net": {"model_state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}},
        lambda state: {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for name, t in state.items()},
    ],
    ids=["module", "compiled", "state_dict", "nested", "old names"],
)
def test_11_wrappings_are_undone_with_a_note(save, model, wrap):
    loaded = load(save(wrap(model.state_dict())))
    assert same_weights(loaded.module, model)
    assert 2 <= len(loaded.notes) <= 3


def test_11_two_models_in_one_file_are_not_guessed_between(save, model):
    state = model.state_dict()
    why = refusal(save(state | {f"module.{name}": tensor for name, tensor in state.items()})).why
    assert why == "holds 2 networks: (top level), module"


def test_12_an_incomplete_variant_is_called_incomplete(save):
    state = build_model(find_variant("cifar-7-2").spec).state_dict()
    del state["features.norm5.bias"]
    error = refusal(save(state))
    assert "cifar-7-2: features.norm5.bias is missing" in error.why
    assert "incomplete" in error.fix


def test_12_another_network_is_not_a_densenet(save):
    state = {"fc.weight": torch.zeros(2, 2)}
    assert "features.conv0.weight is missing" in refusal(save(state)).why
    assert "does not look like a DenseNet" in refusal(save(state), variant=find_variant("121")).fix


def test_a_weight_that_is_not_a_tensor_is_missing(save, model):
    assert "conv0.weight" in refusal(save({**model.state_dict(), "features.conv0.weight": 3})).why


def test_an_averaged_model_loads(save, model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert same_weights(load(save(averaged.state_dict())).module, model)


def test_a_small_file_cannot_claim_huge_tensors(save):
    huge = torch.zeros(1).expand(1 << 40)
    assert "4398046511104 bytes" in refusal(save({"features.conv0.weight": huge})).why


def test_features_of_a_classifier_drop_it_with_a_note(save, model):
    loaded = load(save(model.state_dict()), WeightsConstraint(head="features", num_classes=9))
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module(images), model.head(model.features(images)))
    assert loaded.notes == ("classifier dropped: the output is the features", ASSUMED)
    assert loaded.output_names == ("features",)
    prefixed = load(
        save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}),
        WeightsConstraint(head="features"),
    )
    assert len(prefixed.notes) == 3


def test_a_classifier_cannot_come_from_features(save, model):
    features = build_model(dataclasses.replace(model.spec, head="features")).state_dict()
    loaded = load(save(features))
    assert (loaded.variant.spec.head, loaded.notes) == ("features", (ASSUMED,))
    assert "classifier.weight is missing" in refusal(save(features), head="classifier").why


def test_a_multiscale_head_needs_its_own_weights(save, model):
    multiscale = build_model(dataclasses.replace(model.spec, head="multiscale"))
    assert same_weights(load(save(multiscale.state_dict())).module, multiscale)
    assert same_weights(load(save(multiscale.state_dict()), WeightsConstraint(head="multiscale")).module, multiscale)
    assert refusal(save(model.state_dict()), head="multiscale").why == "does not have a multiscale head"
    assert load(save(model.state_dict()), WeightsConstraint(head="classifier")).variant.spec.head == "classifier"


class Renamed(CheckpointFormat):
    """A library that calls the stem `stem`, keeps thresholds beside the weights, and takes one channel."""

    def recognises(self, names):
        return "stem.weight" in names

    def renames(self, names):
        return {"stem.weight": "features.conv0.weight", "thresholds": None}

    def facts(self, tensors):
        return ModelFacts(task="multilabel", thresholds=tensors["thresholds"].tolist())


def test_a_format_renames_drops_and_states_facts(save, model):
    with formats.restored():
        formats.register("renamed")(Renamed)
        state = model.state_dict() | {"thresholds": torch.full((5,), 0.25)}
        state["stem.weight"] = state.pop("features.conv0.weight")
        loaded = load(save({f"module.{name}": tensor for name, tensor in state.items()}))
        assert same_weights(loaded.module, model)
        assert loaded.facts == ModelFacts(channels=3, task="multilabel", thresholds=(0.25,) * 5)
        assert "ignored as not part of the network: module.thresholds" in loaded.notes


def test_a_margin_head_is_refused_and_its_features_are_not(save, model):
    """ArcFace compares directions: as a linear layer it would give other scores, and no error."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    plain, width = save(state, "plain.pth"), model.classifier.in_features
    path = save(state | {"arcface.weight": torch.ones(7, width)})
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "arcface is a margin head" in caught.value.why
    assert "--head features" in caught.value.fix
    loaded = load(path, WeightsConstraint(head="features"))
    assert loaded.variant.spec.head == "features"
    assert "classifier dropped: the output is the features" in loaded.notes
    assert loaded.notes[-1] == ASSUMED
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.module(images), load(plain).module(images))

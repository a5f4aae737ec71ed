"""Checkpoints in every wrapping, and which of those that do not fit is refused how."""

import dataclasses

import pytest
import safetensors.torch
import torch
import torchvision

from densenet_deploy.errors import CheckpointError, ManifestError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.manifest import Manifest, Preprocessing, WeightsOrigin
from densenet_deploy.models.build import build_model
from densenet_deploy.sources import CheckpointFormat, WeightsConstraint, formats, load, weights
from densenet_deploy.sources.file import save_weights
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec


@pytest.fixture
def save(tmp_path):
    def write(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return write


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


def test_variant_classes_and_head_are_read_from_the_file(save, model):
    loaded = load(save(model.state_dict()))
    assert loaded.variant.spec == model.spec
    assert loaded.origin.source == "weights.pth"
    assert loaded.notes == ()
    assert not loaded.module.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["121", "cifar-bc-40-12"])
def test_a_named_variant_is_recognized(save, name):
    loaded = load(save(build_model(find_variant(name).spec).state_dict()))
    assert loaded.variant == find_variant(name)


def test_torchvision_checkpoints_load_as_they_are(save):
    theirs = torchvision.models.densenet121(num_classes=4)
    loaded = load(save(theirs.state_dict()), WeightsConstraint(variant=find_variant("121"), num_classes=4))
    assert weights_sha256(theirs.state_dict()) == loaded.origin.sha256


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
    asked = load(path, WeightsConstraint(variant=variant_for(model.spec)))
    assert asked.variant.preprocessing.resize == 40


def test_untrained_weights_stay_untrained_in_a_file(tmp_path, model):
    path = tmp_path / "mine.safetensors"
    save_weights(path, model, manifest_of(model, weights=WeightsOrigin("none", "00", 3)))
    assert not load(path).origin.is_trained


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
    assert "5 classes" in why
    assert "1000" in why


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
    assert 1 <= len(loaded.notes) <= 2


def test_11_batch_counters_may_lack_or_be_many(save, model):
    state = model.state_dict()
    lacking = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    many = state | {"features.conv0.num_batches_tracked": torch.tensor(3)}
    assert same_weights(load(save(lacking)).module, load(save(many)).module)


def test_11_two_models_in_one_file_are_not_guessed_between(save, model):
    state = model.state_dict()
    why = refusal(save(state | {f"module.{name}": tensor for name, tensor in state.items()})).why
    assert "features.conv0.weight and module.features.conv0.weight" in why


def test_11_a_dictionary_that_holds_itself_ends(save):
    endless = {}
    endless["model"] = endless
    assert refusal(save(endless)).exit_code == 3


def test_12_at_most_five_misfits_are_listed_with_the_likeness(save):
    state = build_model(dataclasses.replace(find_variant("169").spec, num_classes=2)).state_dict()
    error = refusal(save(state), variant=find_variant("121"))
    assert error.why.count("features.") == 5
    assert "densenet121" in error.why
    assert "densenet169" in error.fix


def test_12_a_missing_an_unexpected_and_a_reshaped_parameter(save, model):
    state = model.state_dict()
    del state["features.norm5.bias"]
    state["features.extra.weight"] = torch.zeros(1)
    state["features.norm5.weight"] = torch.zeros(7)
    why = refusal(save(state)).why
    for part in ("norm5.bias is missing", "extra.weight is unexpected", "norm5.weight has shape (7,), not"):
        assert part in why


def test_12_an_incomplete_variant_is_called_incomplete(save):
    state = build_model(find_variant("cifar-40-12").spec).state_dict()
    del state["features.norm5.bias"]
    error = refusal(save(state))
    assert "cifar-40-12: features.norm5.bias is missing" in error.why
    assert "incomplete" in error.fix


def test_12_another_network_is_not_a_densenet(save):
    state = {"fc.weight": torch.zeros(2, 2)}
    assert "features.conv0.weight is missing" in refusal(save(state)).why
    assert "does not look like a DenseNet" in refusal(save(state), variant=find_variant("121")).fix


def test_another_stem_or_classifier_is_named_with_the_way_out(save):
    net = torchvision.models.densenet121(num_classes=4)
    net.classifier = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1024, 4))
    error = refusal(save(net.state_dict()))
    assert "classifier.1.weight" in error.why
    assert "densenet_deploy.load(module)" in error.fix
    state = torchvision.models.densenet121().state_dict()
    state["features.conv0.weight"] = state["features.conv0.weight"][:, :1]
    assert "reads 1 channels" in refusal(save(state)).why


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_13_other_floats_are_cast_with_a_note(save, model, dtype):
    loaded = load(save(model.to(dtype).state_dict()))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.module.parameters())
    assert loaded.notes == (f"{str(dtype)[6:]} weights cast to float32",)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool])
def test_13_weights_that_are_not_floats_are_refused(save, model, dtype):
    state = model.state_dict()
    state["classifier.weight"] = state["classifier.weight"].to(dtype)
    assert f"classifier.weight has the type {str(dtype)[6:]}" in refusal(save(state)).why


@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor:UserWarning"
)  # torch deprecates what old files still hold
def test_14_sparse_meta_and_quantized_tensors_are_refused(save, model):
    weight = model.classifier.weight.detach()
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    kinds = {"sparse": weight.to_sparse(), "meta": weight.to("meta"), "quantized": quantized}
    for kind, tensor in kinds.items():
        state = model.state_dict() | {"classifier.weight": tensor}
        assert f"classifier.weight is a {kind} tensor" in refusal(save(state)).why


def test_what_is_not_a_tensor_is_ignored_with_a_note(save, model):
    loaded = load(save({**model.state_dict(), "epoch": 3, "history": [0.1, 0.2]}))
    assert loaded.notes == ("ignored beside the weights: epoch, history",)
    assert same_weights(loaded.module, model)


def test_a_weight_that_is_not_a_tensor_is_missing(save, model):
    assert "conv0.weight" in refusal(save({**model.state_dict(), "features.conv0.weight": 3})).why


def test_an_averaged_model_loads(save, model):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert same_weights(load(save(averaged.state_dict())).module, model)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
def test_averages_alone_are_the_weights_and_beside_others_are_not(save, model, key):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    assert same_weights(load(save({key: model.state_dict()})).module, model)
    loaded = load(save({key: zeros, "state_dict": model.state_dict()}))
    assert same_weights(loaded.module, model)
    assert f"ignored beside the weights: {key}" in loaded.notes


def test_a_small_file_cannot_claim_huge_tensors(save):
    huge = torch.zeros(1).expand(1 << 40)
    assert "4398046511104 bytes" in refusal(save({"features.conv0.weight": huge})).why


def test_features_of_a_classifier_drop_it_with_a_note(save, model):
    loaded = load(save(model.state_dict()), WeightsConstraint(head="features", num_classes=9))
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module(images), model.head(model.features(images)))
    assert "classifier dropped" in loaded.notes[0]


def test_a_classifier_cannot_come_from_features(save, model):
    features = build_model(dataclasses.replace(model.spec, head="features")).state_dict()
    assert load(save(features)).variant.spec.head == "features"
    assert "classifier.weight is missing" in refusal(save(features), head="classifier").why


def test_a_multiscale_head_needs_its_own_weights(save, model):
    multiscale = build_model(dataclasses.replace(model.spec, head="multiscale"))
    assert same_weights(load(save(multiscale.state_dict())).module, multiscale)
    assert "multiscale" in refusal(save(model.state_dict()), head="multiscale").why


class Renamed(CheckpointFormat):
    """A library that calls the stem `stem`, keeps thresholds beside the weights, and takes one channel."""

    def recognises(self, names):
        return "stem.weight" in names

    def renames(self, names):
        return {"stem.weight": "features.conv0.weight", "thresholds": None}

    def facts(self, tensors):
        return ModelFacts(task="multilabel", thresholds=tensors["thresholds"].tolist())


def test_a_format_renames_drops_and_states_facts(save, model, monkeypatch):
    monkeypatch.setitem(formats._items, "renamed", Renamed)
    state = model.state_dict() | {"thresholds": torch.full((5,), 0.25)}
    state["stem.weight"] = state.pop("features.conv0.weight")
    loaded = load(save({f"module.{name}": tensor for name, tensor in state.items()}))
    assert same_weights(loaded.module, model)
    assert loaded.facts == ModelFacts(task="multilabel", thresholds=(0.25,) * 5)
    assert "ignored beside the weights: module.thresholds" in loaded.notes


def test_a_float32_tensor_with_its_own_storage_is_not_copied(model):
    own, view = torch.zeros(4), torch.zeros(8)[:4]
    plain = weights._float32({"own": own, "view": view, "tied": own, "half": own.half(), "turned": torch.ones(2, 3).T})
    assert plain["own"].data_ptr() == own.data_ptr()
    assert plain["view"].untyped_storage().nbytes() == 16
    assert plain["tied"].data_ptr() != own.data_ptr()
    assert {tensor.dtype for tensor in plain.values()} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in plain.values())

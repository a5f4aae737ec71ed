"""What a checkpoint holds becomes weights by torchvision's names: unwrapped, renamed, converted, fitted, hashed."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources import CheckpointFormat, formats
from densenet_deploy.sources.checkpoint_file import CheckpointFile
from densenet_deploy.sources.heads import WAY_OUT
from densenet_deploy.sources.weights import (
    casting_note,
    fitted_model,
    require_numbers,
    shapes_of,
    weights_from,
    weights_sha256,
)
from densenet_deploy.variants import find_variant, variant_for
from densenet_deploy.variants.spec import DenseNetSpec

PATH = Path("there.pth")


def read(content, size_bytes=10**6):
    return weights_from(CheckpointFile(PATH, size_bytes, content))


def refusal(content, size_bytes=10**6):
    with pytest.raises(CheckpointError) as caught:
        read(content, size_bytes)
    assert caught.value.subject == str(PATH)
    return caught.value


def test_tensors_alone_need_no_note():
    weight = torch.arange(6.0).reshape(2, 3)
    weights = read({"a": weight})
    assert list(weights.tensors) == ["a"]
    assert torch.equal(weights.tensors["a"], weight)
    assert (weights.shapes, weights.facts, weights.notes) == ({"a": (2, 3)}, ModelFacts(), ())


@pytest.mark.parametrize("key", ["state_dict", "model_state", "net_dict", "student", "ema", "whatever"])
def test_weights_are_found_under_any_name(key, state):
    weights = read({"epoch": 1, key: state, "optimizer": {}})
    assert set(weights.tensors) == set(state)
    assert weights.notes == (f"weights found under {key}", "ignored beside the weights: epoch, optimizer")


def test_a_file_without_a_densenet_shows_its_largest_dictionary():
    weights = read({"small": {"a": torch.ones(1)}, "large": {"b": torch.ones(1), "c": torch.ones(1)}})
    assert list(weights.tensors) == ["b", "c"]
    assert weights.notes == ("weights found under large", "ignored beside the weights: small")


@pytest.mark.parametrize("copy", ["ema", "state_dict_ema", "teacher", "model_avg"])
def test_the_weights_of_training_come_before_averages_and_teachers(copy, state):
    other = {name: tensor + 1 for name, tensor in state.items()}
    weights = read({copy: other, "model": state})
    assert torch.equal(weights.tensors["classifier.bias"], state["classifier.bias"])
    assert f"ignored beside the weights: {copy}" in weights.notes


def test_two_networks_are_both_named(state):
    error = refusal({"generator": state, "critic": {f"net.{name}": tensor for name, tensor in state.items()}})
    assert error.why == "holds 2 networks: generator, critic.net"
    assert "--key" in error.fix
    chosen = weights_from(CheckpointFile(PATH, 10**9, {"a": state, "b": dict(state)}), key="b")
    assert chosen.notes[0] == "weights found under b"


def test_two_networks_in_one_dictionary_are_told_apart_by_their_prefixes(state):
    both = {f"{prefix}{name}": tensor for prefix in ("student.", "teacher.") for name, tensor in state.items()}
    weights = read(both)
    assert set(weights.tensors) == set(state)
    assert any(note.startswith("ignored as not part of the network: teacher.") for note in weights.notes)
    assert "student, other" in refusal({name.replace("teacher", "other"): t for name, t in both.items()}).why


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_arrays_of_numbers_are_weights(layout, state):
    arrays = {name: layout(tensor.numpy()) for name, tensor in state.items()}
    weights = read({"epoch": np.int64(3), "state_dict": arrays | {"names": np.array(["a"])}})
    assert set(weights.tensors) == set(state)
    assert all(np.array_equal(weights.tensors[name], tensor.numpy()) for name, tensor in state.items())


def test_what_is_no_tensor_is_named():
    assert read({"model": "densenet", "a": torch.ones(1)}).notes == ("ignored as not part of the network: model",)


def wrapped(times):
    content = {"a": torch.ones(1)}
    for _ in range(times):
        content = {"model": content}
    return content


def test_weights_may_be_wrapped_six_times_and_not_seven():
    assert read(wrapped(6)).notes == (f"weights found under {' → '.join(['model'] * 6)}",)
    refusal(wrapped(7))


def test_a_dictionary_that_holds_itself_ends():
    endless = {}
    endless["model"] = endless
    refusal(endless)


@pytest.mark.parametrize(
    "content", [None, 3, [torch.ones(1)], torch.ones(1), {}, {"a": 1}, {"model": {"a": 1}}], ids=str
)
def test_what_holds_no_tensors_by_name_is_refused(content):
    assert refusal(content).why == "does not hold a dictionary of tensors"


@pytest.mark.parametrize("counter", ["num_batches_tracked", "n_averaged"])
def test_counters_are_not_weights(counter):
    names = {"num_batches_tracked": "norm.num_batches_tracked", "n_averaged": "n_averaged"}
    weights = read({names[counter]: torch.tensor(3), "a": torch.ones(1)})
    assert (list(weights.tensors), weights.notes) == (["a"], ())


def test_a_name_that_is_only_like_a_counter_is_a_weight():
    names = ["x.num_batches_tracked.a", "module_n_averaged"]
    assert list(read({name: torch.ones(1) for name in names}).tensors) == names


def test_names_need_not_be_text():
    assert list(read({1: torch.ones(1)}).tensors) == ["1"]


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.module.", "encoder.", "cnn.", "base_model.", "module.densenet121.", "0.0.", "a.b.c."],
)
def test_prefixes_are_removed_whatever_they_are(prefix, state):
    weights = read({f"{prefix}{name}": tensor for name, tensor in state.items()})
    assert set(weights.tensors) == set(state)
    first = next(iter(state))
    assert weights.notes == (f"{len(state)} parameters renamed, such as {prefix}{first} to {first}",)


@pytest.mark.parametrize("prefix", ["", "module.", "0.", "0.0."])
def test_the_features_may_be_the_root(prefix, state):
    bare = {f"{prefix}{name.removeprefix('features.')}": tensor for name, tensor in state.items()}
    assert set(read(bare).tensors) == set(state)


@pytest.mark.parametrize("prefix", ["train_model.", "metric.", "criterion.net."])
def test_a_prefix_may_sound_like_a_metric(prefix, state):
    assert set(read({f"{prefix}{name}": tensor for name, tensor in state.items()}).tensors) == set(state)


def test_a_head_outside_of_the_prefix_is_found(state):
    names = {f"module.cnn.{name}": tensor for name, tensor in state.items() if name.startswith("features.")}
    names |= {"module.fc.weight": state["classifier.weight"], "module.fc.bias": state["classifier.bias"]}
    assert set(read(names).tensors) == set(state)


def test_two_tensors_of_one_name_are_not_guessed_between(state):
    bias = state["classifier.bias"]
    error = refusal({f"module.{name}": tensor for name, tensor in state.items()} | {"classifier.bias": bias})
    assert error.why == "module.classifier.bias and classifier.bias are both classifier.bias"


@pytest.mark.parametrize(
    "extra",
    [
        {"criterion.pos_weight": torch.ones(5)},
        {"val_acc.tp": torch.zeros(5, dtype=torch.int64)},
        {"steps": torch.tensor(3)},
        {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)},
        {"center_loss.centers": torch.zeros(5, 2)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_what_is_not_part_of_the_network_is_ignored_and_named(extra, state):
    weights = read(state | extra)
    assert set(weights.tensors) == set(state)
    assert weights.notes == (f"ignored as not part of the network: {', '.join(extra)}",)


@pytest.fixture
def state(model):
    """The weights of a network, without counters."""
    return {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}


@pytest.mark.parametrize(
    ("count", "listed"), [(1, "k0"), (5, "k0, k1, k2, k3, k4"), (7, "k0, k1, k2, k3, k4 and 2 more")]
)
def test_at_most_five_names_are_listed(count, listed):
    content = {f"k{index}": index for index in range(count)}
    assert read({**content, "a": torch.ones(1)}).notes == (f"ignored as not part of the network: {listed}",)


def test_tensors_may_need_four_times_the_size_of_the_file_and_no_more():
    content = {"a": torch.zeros(50, dtype=torch.float64), "b": torch.zeros(100).half()}  # 400 and 200 bytes
    assert len(read(content, size_bytes=150).tensors) == 2
    assert refusal(content, size_bytes=149).why.startswith("its tensors need 600 bytes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_with_a_note(dtype):
    weights = read({"a": torch.tensor([0.5, 1.5], dtype=dtype)})
    assert weights.tensors["a"].dtype == torch.float32
    assert weights.tensors["a"].tolist() == [0.5, 1.5]
    assert weights.notes == (f"{str(dtype)[6:]} weights cast to float32",)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_other_types_are_refused_by_name(dtype):
    tensors = {"a": torch.ones(1), "b.weight": torch.ones(1).to(dtype)}
    assert refusal(tensors).why == f"b.weight has the type {str(dtype)[6:]}"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, and still in old files
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
def test_tensors_that_are_not_dense_are_refused_by_kind(kind):
    weight = torch.ones(2, 2)
    tensor = {
        "sparse": lambda: weight.to_sparse(),
        "meta": lambda: weight.to("meta"),
        "quantized": lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    }[kind]()
    assert refusal({"a": tensor}).why == f"a is a {kind} tensor"


def test_a_float32_tensor_with_a_storage_of_its_own_is_not_copied_and_every_other_is():
    own = torch.zeros(4)
    tensors = {
        "own": own,
        "tied": own,
        "view": torch.zeros(8)[:4],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "last": torch.ones(1, 3, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.ones(4).half(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    plain = read(tensors).tensors
    assert plain["own"].data_ptr() == own.data_ptr()
    assert plain["parameter"].data_ptr() == tensors["parameter"].data_ptr()
    assert len({tensor.data_ptr() for tensor in plain.values()}) == len(plain)
    for name, tensor in plain.items():
        assert torch.equal(tensor, tensors[name].float())
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert (tensor.dtype, tensor.is_contiguous(), tensor.requires_grad) == (torch.float32, True, False)


class Renamed(CheckpointFormat):
    """A library that calls the stem `stem` and keeps thresholds beside the weights."""

    def recognises(self, names):
        return "stem.weight" in names

    def renames(self, names):
        return {"stem.weight": "features.conv0.weight", "thresholds": None}

    def facts(self, tensors):
        return ModelFacts(task="multilabel", thresholds=tensors["thresholds"].tolist())


def test_a_format_renames_drops_and_states_facts(state):
    with formats.restored():
        formats.register("renamed")(Renamed)
        names = {name.replace("features.conv0", "stem"): tensor for name, tensor in state.items()}
        weights = read({f"module.{name}": t for name, t in (names | {"thresholds": torch.full((2,), 0.25)}).items()})
        assert set(weights.tensors) == set(state)
        assert weights.facts == ModelFacts(task="multilabel", thresholds=(0.25, 0.25))
        assert "ignored as not part of the network: module.thresholds" in weights.notes


def test_the_model_holds_exactly_the_tensors(model):
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    fitted = fitted_model("it", variant_for(model.spec), tensors)
    assert fitted.spec == model.spec
    assert not fitted.training
    state = fitted.state_dict()
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())
    counters = [tensor for name, tensor in state.items() if name not in tensors]
    assert {(int(counter), counter.dtype, counter.device.type) for counter in counters} == {(0, torch.int64, "cpu")}


def misfit(variant, tensors):
    with pytest.raises(CheckpointError) as caught:
        fitted_model("it", variant, tensors)
    assert caught.value.subject == "it"
    return caught.value


def test_what_is_missing_unexpected_or_of_another_shape_is_named_in_this_order(model):
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    tensors["features.norm5.weight"] = torch.zeros(7)
    tensors["features.extra.weight"] = torch.zeros(1)
    del tensors["features.norm5.bias"]
    error = misfit(variant_for(model.spec), tensors)
    assert error.why.partition(": ")[2] == (
        "features.norm5.bias is missing, features.extra.weight is unexpected,"
        f" features.norm5.weight has shape (7,), not ({model.spec.feature_channels},)"
    )
    assert error.fix.startswith("it is incomplete or was changed")
    assert error.fix.endswith(WAY_OUT)


def test_weights_of_another_variant_look_like_it(model):
    other = find_variant("cifar-7-1")
    error = misfit(other, model.state_dict())
    assert error.why.startswith("does not fit densenet-cifar-7-1: ")
    assert error.fix.startswith("it looks like densenet")


def test_weights_of_another_network_look_like_none():
    error = misfit(variant_for(DenseNetSpec(growth_rate=1, blocks=(1,))), {"fc.weight": torch.zeros(2, 2)})
    assert error.fix.startswith("it does not look like a DenseNet (")


def test_norms_without_statistics_are_named(model):
    tensors = {name: t for name, t in model.state_dict().items() if "running" not in name}
    with pytest.raises(CheckpointError) as caught:
        fitted_model("x", variant_for(model.spec), tensors)
    assert "no running mean and variance" in caught.value.why
    assert caught.value.fix.startswith("load the module itself")


def test_nan_and_inf_are_counted_and_the_first_tensor_named():
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    require_numbers("it", {"a": torch.tensor([1e38, -1e38])})
    with pytest.raises(CheckpointError) as caught:
        require_numbers("it", {"a": torch.ones(2), "c": bad, "b": bad[:2]})
    assert caught.value.subject == "it"
    assert caught.value.why == "holds 4 NaN or Inf values in 2 of its tensors, the first c"


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_negative_variances_are_named_and_counted(kind):
    negative = kind([-1e-9, 1.0, -2.0])
    require_numbers("it", {"a.running_var": kind([0.0, 1e-40]), "a.running_mean": negative, "running_var": negative})
    with pytest.raises(CheckpointError) as caught:
        require_numbers("it", {"a.running_var": kind([1.0]), "b.running_var": negative, "c.running_var": negative})
    assert caught.value.why == "holds 4 negative variances in 2 of its norms, the first b.running_var"
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        require_numbers("it", {"a.running_var": kind([-1.0, math.nan])})


def test_the_hash_is_that_of_names_shapes_and_bytes_in_the_order_of_names():
    tensors = {"b": torch.tensor([[1.0, 2.0]]).T, "a": torch.tensor(0.5), "c.num_batches_tracked": torch.tensor(3)}
    expected = hashlib.sha256(
        b"a()" + torch.tensor(0.5).numpy().tobytes() + b"b(2, 1)" + bytes.fromhex("0000803f00000040")
    )
    assert weights_sha256(tensors) == expected.hexdigest()
    parameters = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    assert weights_sha256(parameters) == expected.hexdigest()


@pytest.mark.parametrize("change", [{"a": torch.tensor(0.25)}, {"b": torch.ones(2)}, {"d": torch.ones(0)}], ids=str)
def test_another_value_shape_or_name_is_another_hash(change):
    tensors = {"a": torch.tensor(0.5), "b": torch.ones(1, 2)}
    assert weights_sha256(tensors | change) != weights_sha256(tensors)


def test_shapes_are_tuples():
    assert shapes_of({"a": torch.zeros(2, 3), "b": torch.tensor(1)}) == {"a": (2, 3), "b": ()}


def test_a_note_names_the_types_that_are_cast():
    kinds = [torch.float32, torch.half, torch.float32, torch.bfloat16, torch.half]
    assert casting_note(torch.ones(1, dtype=kind) for kind in kinds) == (
        "bfloat16 and float16 weights cast to float32",
    )
    assert casting_note([torch.ones(1)]) == ()


def test_the_notes_come_in_the_order_of_the_work():
    content = {"model": {"module.a": torch.ones(1).half(), "step": 3}, "epoch": 1}
    assert read(content).notes == (
        "weights found under model",
        "ignored beside the weights: epoch",
        "ignored as not part of the network: step",
        "1 parameters renamed, such as module.a to a",
        "float16 weights cast to float32",
    )

"""Names of any state dict become ours, and what stands beside the network is named or refused."""

import pytest
import torch

from densenet_deploy.errors import CheckpointError
from densenet_deploy.facts import ModelFacts
from densenet_deploy.models.build import build_model
from densenet_deploy.sources.heads import HeadConventions
from densenet_deploy.sources.layout import chosen_network, layout_of
from densenet_deploy.sources.source import CheckpointFormat, formats
from densenet_deploy.variants.spec import DenseNetSpec

SPEC = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, num_classes=5)


@pytest.fixture(scope="module")
def state():
    return {name: tensor for name, tensor in build_model(SPEC).state_dict().items() if "num_batches" not in name}


def refusal(tensors):
    with pytest.raises(CheckpointError) as caught:
        layout_of(tensors)
    return caught.value


def spec_of(tensors):
    layout = layout_of(tensors)
    return layout.spec({new: tuple(tensors[name].shape) for name, new in layout.names.items()})


def test_our_own_names_stay(state):
    layout = layout_of(state)
    assert layout.names == {name: name for name in state}
    assert (layout.facts, layout.unused, layout.notes, layout.finish) == (ModelFacts(), (), (), None)
    assert spec_of(state) == SPEC


def test_the_head_is_part_of_the_spec(state):
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    assert spec_of(tensors).head == "features"
    width = SPEC.feature_channels
    tensors |= {"fc.0.weight": torch.zeros(6, width), "fc.1.weight": torch.zeros(3, 6)}
    spec = spec_of(tensors)
    assert (spec.hidden, spec.bias, spec.num_classes) == ("linear:6:nobias", False, 3)


@pytest.mark.parametrize("name", ["norm_final", "final_norm", "norm4", "last", "bn"])
def test_the_last_norm_may_have_any_name_among_the_features(state, name):
    renamed = {key.replace("norm5", name): tensor for key, tensor in state.items()}
    assert layout_of(renamed).names[f"features.{name}.bias"] == "features.norm5.bias"


def test_two_norms_behind_the_last_block_are_refused(state):
    extra = {f"features.attention.{key}": torch.ones(3) for key in ("weight", "running_mean")}
    error = refusal(state | extra)
    assert "features.attention.weight" in error.why
    assert "torch.onnx.export" in error.fix


def test_means_among_the_features_are_ignored(state):
    layout = layout_of(state | {"features.mean": torch.zeros(3)})
    assert (layout.unused, set(layout.names)) == (("features.mean",), set(state))


def test_at_most_five_strange_names_are_listed(state):
    error = refusal(state | {f"features.se.{index}": torch.ones(1) for index in range(6)})
    assert error.why.endswith("features.se.3, features.se.4 and more")


def test_volumes_are_refused(state):
    tensors = state | {"features.conv0.weight": torch.zeros(8, 1, 7, 7, 7)}
    assert "3-D" in refusal(tensors).why


def test_without_a_densenet_names_lose_what_they_share():
    tensors = {f"module.net.{name}.weight": torch.zeros(2) for name in ("a.b", "a.c", "d")}
    assert list(layout_of(tensors).names.values()) == ["a.b.weight", "a.c.weight", "d.weight"]
    assert layout_of({}).names == {}


def test_one_network_of_several_is_chosen_by_its_names(state):
    content = {"model": state, "ema": dict(state)}
    network, others = chosen_network(content)
    assert (network.keys, [other.keys for other in others]) == (("model",), [("ema",)])
    assert chosen_network({"ema": state})[0].keys == ("ema",)
    assert chosen_network({"a": 3}) == (None, ())
    for content in ({"a": state, "b": dict(state)}, {"ema": state, "teacher": dict(state)}):
        with pytest.raises(CheckpointError) as caught:
            chosen_network(content)
        assert caught.value.why == f"holds 2 networks: {', '.join(content)}"
        assert "--key" in caught.value.fix


def test_a_key_names_one_of_several_networks_and_nothing_else(state):
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    content = {"a": {"net": dict(state)}, "b": prefixed, "ema": dict(state)}
    for key, keys in (("a.net", ("a", "net")), ("b.module", ("b",)), ("ema", ("ema",))):
        network, others = chosen_network(content, key)
        assert network.keys == keys
        assert len(others) == 2
    assert chosen_network(state, "(top level)")[0].keys == ()
    for wrong, listed in ((content, "b.module, ema, a.net"), ({"a": 3}, "none")):
        with pytest.raises(CheckpointError) as caught:
            chosen_network(wrong, "b")
        assert listed in caught.value.fix


def test_another_network_in_the_same_dictionary_is_left_out(state):
    both = {f"{prefix}{name}": tensor for prefix in ("student.", "ema_model.module.") for name, tensor in state.items()}
    layout = layout_of(both)
    assert set(layout.names) == {f"student.{name}" for name in state}
    assert len(layout.unused) == len(state)


class Stated(CheckpointFormat):
    head = HeadConventions("avg", relus=False)

    def recognises(self, names):
        return "mark" in names

    def renames(self, names):
        return {"mark": None}

    def facts(self, tensors):
        return ModelFacts(image_size=int(tensors["mark"]), task="multilabel")

    def notes(self, tensors):
        return (f"marked {int(tensors['mark'])}",)

    def library_output(self, outputs, tensors):
        return outputs + int(tensors["mark"])


class Later(Stated):
    head = HeadConventions()

    def recognises(self, names):
        return "features.norm5.weight" in names

    def facts(self, tensors):
        return ModelFacts(task="regression")

    notes = CheckpointFormat.notes
    library_output = CheckpointFormat.library_output


def test_every_format_that_recognises_the_names_adds_to_what_is_known(state):
    with formats.restored():
        formats.register("a")(Stated)
        formats.register("b")(Later)
        layout = layout_of({f"module.{name}": t for name, t in (state | {"mark": torch.tensor(48)}).items()})
    assert layout.facts == ModelFacts(image_size=48, task="regression")
    assert layout.notes[0] == "marked 48"
    assert layout.unused == ("module.mark",)
    assert layout.head.pooling == "avg"
    assert layout.finish(2) == 50

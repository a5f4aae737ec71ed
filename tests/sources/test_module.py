"""Modules in memory: known DenseNets are recognised by what they compute, every other module is taken as it is."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from torch import nn

from densenet_deploy.errors import CheckpointError, InputError, UsageError
from densenet_deploy.models.build import build_model
from densenet_deploy.sources import WeightsConstraint, load
from densenet_deploy.variants import find_variant


@pytest.fixture(scope="module")
def torchvision_net():
    torch.manual_seed(0)
    return torchvision.models.densenet121(num_classes=7).eval()


def changed(net, name, layer):
    other = copy.deepcopy(net)
    owner, _, leaf = name.rpartition(".")
    setattr(other.get_submodule(owner), leaf, layer)
    return other


def test_our_own_network_keeps_its_spec(model):
    loaded = load(model)
    assert loaded.module is model
    assert loaded.variant.spec == model.spec
    assert (loaded.output_names, loaded.facts.channels, loaded.notes) == (("logits",), 3, ())
    dropping = build_model(dataclasses.replace(model.spec, drop_rate=0.3, head="features"))
    assert load(dropping).variant.spec == dropping.spec
    assert load(dropping).output_names == ("features",)


def test_a_torchvision_network_is_recognised_with_its_classes(torchvision_net):
    loaded = load(torchvision_net)
    assert loaded.module is torchvision_net
    assert (loaded.name, loaded.variant.name, loaded.variant.spec.num_classes) == ("densenet121", "121", 7)
    assert loaded.origin.source == "DenseNet in memory"
    assert loaded.origin.is_trained


def test_an_arbitrary_linear_head_is_recognised(torchvision_net):
    assert load(changed(torchvision_net, "classifier", nn.Linear(1024, 3))).variant.spec.num_classes == 3


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("features.pool0", nn.Identity()),
        ("features.denseblock1.denselayer1.relu1", nn.SiLU()),
        ("features.norm0", nn.BatchNorm2d(64, eps=0.5)),
    ],
)
def test_the_parameters_of_a_densenet_with_another_forward_are_not_called_one(torchvision_net, name, layer):
    if isinstance(layer, nn.BatchNorm2d):
        layer.load_state_dict(torchvision_net.get_submodule(name).state_dict())
    loaded = load(changed(torchvision_net, name, layer).eval())
    assert loaded.variant is None
    assert "densenet121" in loaded.notes[0]


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Dropout(0.2), nn.Linear(1024, 3)),
        nn.Sequential(nn.Linear(1024, 3), nn.Sigmoid()),
        nn.Linear(1024, 3, bias=False),
    ],
)
def test_another_head_is_taken_as_it_is(torchvision_net, head):
    net = changed(torchvision_net, "classifier", head).eval()
    loaded = load(net)
    assert loaded.module is net
    assert (loaded.variant, loaded.name, loaded.notes) == (None, "densenet", ())


def test_another_module_says_what_it_can():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3)

        def forward(self, images):
            maps = self.stem(images).mean((2, 3))
            return {"grade": maps[:, :3], "age": maps[:, 3:]}

    loaded = load(Net().eval())
    assert (loaded.name, loaded.variant, loaded.facts.channels) == ("net", None, 1)
    assert loaded.output_names == ("grade", "age")


def test_a_training_or_half_precision_module_is_copied_and_stays_as_it_is(model):
    training = copy.deepcopy(model).train()
    loaded = load(training)
    assert training.training
    assert not any(inner.training for inner in loaded.module.modules())
    half = copy.deepcopy(model).half()
    loaded = load(half)
    assert loaded.notes == ("float16 weights cast to float32",)
    assert next(half.parameters()).dtype == torch.float16
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}


def test_the_global_random_state_does_not_move(model):
    before = torch.get_rng_state()
    load(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_nonfinite_weights_are_refused_unless_accepted(model):
    model.classifier.bias.data[1] = float("nan")
    with pytest.raises(CheckpointError) as caught:
        load(model)
    assert caught.value.subject == "DenseNet"
    load(model, WeightsConstraint(allow_nonfinite=True))


@pytest.mark.parametrize("wrong", [{"variant": find_variant("121")}, {"num_classes": 9}, {"head": "features"}])
def test_a_module_that_is_not_what_was_asked_for_is_refused(model, wrong):
    with pytest.raises(UsageError) as caught:
        load(model, WeightsConstraint(**wrong))
    assert caught.value.subject == "DenseNet"
    load(model, WeightsConstraint(num_classes=5, head="classifier"))


def test_a_module_without_values_is_refused():
    with torch.device("meta"):
        net = nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError) as caught:
        load(net)
    assert caught.value.subject == "Conv2d"


@pytest.mark.parametrize("training", [True, False])
def test_a_lazy_module_is_refused_until_it_has_run(training):
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2)).train(training)
    with pytest.raises(InputError) as caught:
        load(net)
    assert caught.value.subject == "Sequential"
    net(torch.zeros(1, 3, 64, 64))
    assert load(net).facts.channels == 3

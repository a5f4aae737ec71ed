"""Weights from pruning masks, weight norms and spectral norms: the values that PyTorch itself computes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from densenet_deploy.errors import CheckpointError
from densenet_deploy.sources.checkpoint_file import CheckpointFile
from densenet_deploy.sources.reparametrized import (
    name_of_sign,
    with_affine_norms,
    with_computed_weights,
    without_parametrizations,
)
from densenet_deploy.sources.weights import weights_from
from densenet_deploy.workflows.load import load
from tests.sources.torch_networks import CHANNELS, agree, decibels, images, network


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


def channels_pruned(layer):
    return prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


def normalized(layer):
    return parametrizations.weight_norm(layer)


def normalized_as_before_2_0(layer):
    return nn.utils.weight_norm(layer)


def normalized_whole(layer):
    return nn.utils.weight_norm(layer, dim=None)


def normalized_by_input(layer):
    return parametrizations.weight_norm(layer, dim=1)


def of_unit_gain(layer):
    return parametrizations.spectral_norm(layer, n_power_iterations=3)


def of_unit_gain_as_before_2_0(layer):
    return nn.utils.spectral_norm(layer)


WAYS = (
    pruned, channels_pruned, normalized, normalized_as_before_2_0, normalized_whole, normalized_by_input,
    of_unit_gain, of_unit_gain_as_before_2_0,
)  # fmt: skip


def orthogonal(layer):
    return parametrizations.orthogonal(layer)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 2)])
def test_the_weight_is_the_one_that_the_layer_computes_in_its_place(way, layer):
    made = nn.Sequential(nn.ReLU(), way(layer.__class__(*([6, 4] if isinstance(layer, nn.Linear) else [3, 4, 2]))))
    with torch.no_grad():
        for name, tensor in made.state_dict().items():  # otherwise g is the norm of v, and W is v
            if not name.endswith(("mask", "_u", ".0._v")):
                tensor.mul_(3.0 if name.endswith(("_g", "original0")) else 1.5)
    made.eval()
    made(torch.zeros(1, 6) if isinstance(layer, nn.Linear) else torch.zeros(1, 3, 4, 4))
    tensors, computed = with_computed_weights(made.state_dict())
    assert (sorted(tensors), computed) == (["1.bias", "1.weight"], ("1.weight",))
    torch.testing.assert_close(tensors["1.weight"], made[1].weight.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("prefix", ["", "a.b."])
def test_weights_and_biases_are_computed_at_any_depth(name, prefix):
    layer = nn.Linear(4, 3)
    prune.random_unstructured(layer, name, 0.5)
    tensors, computed = with_computed_weights({prefix + key: value for key, value in layer.state_dict().items()})
    assert (set(tensors), computed) == ({f"{prefix}weight", f"{prefix}bias"}, (prefix + name,))
    assert torch.equal(tensors[prefix + name], getattr(layer, name))


@pytest.mark.parametrize(
    "names",
    [
        ("weight_orig",),
        ("weight_orig", "weight_u"),
        ("weight_orig", "weight_v"),
        ("weight_orig", "weight_u", "weight_v", "weight"),
        ("parametrizations.weight.original", "parametrizations.weight.0._u"),
        ("weight_orig", "weight_mask", "weight"),
        ("my_weight_orig", "my_weight_mask"),
    ],
)
def test_other_tensors_stay_as_they_are(names):
    tensors = {name: torch.ones(2, 2) for name in names}
    assert with_computed_weights(tensors) == (tensors, ())


def test_a_pruned_network_is_its_checkpoint_and_its_module():
    net = network()
    for layer in (net.features.conv0, net.features.denseblock1.denselayer1.conv1):
        pruned(layer)
    size = sum(tensor.nbytes for tensor in net.state_dict().values())
    weights = weights_from(CheckpointFile("a.pth", size, {"state_dict": net.state_dict()}))
    assert torch.equal(weights.tensors["features.conv0.weight"], net.features.conv0.weight)
    assert "2 weights computed from pruning masks, weight norms or other parametrizations" in weights.notes
    assert not any("mask" in note for note in weights.notes if "computed" not in note)
    loaded = load(net)
    assert loaded.spec is not None
    assert agree(net, loaded.module)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", [*WAYS, orthogonal])
def test_a_module_is_folded_in_a_copy_that_computes_the_same(way, training):
    made = nn.Sequential(way(nn.Linear(6, 4)), nn.ReLU(), way(nn.Linear(4, 3))).train()
    made(torch.randn(5, 6))  # which leaves weights with a gradient function, that PyTorch does not copy
    made.train(training)
    names = sorted(made.state_dict())
    folded, count = without_parametrizations(made)
    assert count == 2
    assert sorted(folded.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert all(isinstance(folded[place].weight, nn.Parameter) and type(folded[place]) is nn.Linear for place in (0, 2))
    assert (sorted(made.state_dict()), made.training) == (names, training)
    images = torch.randn(5, 6)
    torch.testing.assert_close(folded(images), made.eval()(images), rtol=1e-6, atol=1e-6)


def test_a_module_with_weights_of_its_own_is_not_copied():
    plain = nn.Sequential(nn.Linear(6, 4))
    plain.register_forward_pre_hook(lambda *_: None)
    assert without_parametrizations(plain) == (plain, 0)


def test_a_module_whose_weights_cannot_be_replaced_stays_as_it_is():
    class Stubborn(prune.L1Unstructured):
        def remove(self, module):
            raise RuntimeError("no")

    made = nn.Sequential(nn.Linear(6, 4))
    Stubborn.apply(made[0], "weight", 0.5)
    assert without_parametrizations(made) == (made, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", [pruned, normalized, of_unit_gain, of_unit_gain_as_before_2_0, orthogonal])
def test_a_network_in_memory_is_known_with_the_weights_that_it_computes(way):
    net = network()
    way(net.classifier)
    way(net.features.conv0)
    expected = net(images()).detach()
    loaded = load(net.train())
    assert loaded.spec is not None
    assert loaded.notes == ("2 weights computed from pruning masks, weight norms or other parametrizations",)
    sizes = [sum(tensor.numel() for tensor in module.parameters()) for module in (network(), loaded.module)]
    assert sizes[0] == sizes[1]
    assert decibels(expected, loaded.module(images()).detach()) > 110
    assert loaded.weights is not None


def norms_of(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def without_affine(net, *layers):
    for layer in layers:
        layer.affine, layer.weight, layer.bias = False, None, None
    return net


def test_norms_without_scale_and_shift_have_1_and_0():
    net = network()
    without_affine(net, *norms_of(net))
    count = len(norms_of(net))
    for source in (net, net.state_dict()):
        loaded = load(source)
        assert agree(net, loaded.module)
        assert loaded.spec is not None
    assert f"{count} norms without scale and shift: 1 and 0" in loaded.notes


def test_a_norm_of_the_head_may_have_none_alone():
    net = network(nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 3)))
    without_affine(net, net.classifier[0])
    loaded = load(net.state_dict())
    assert "1 norms without scale and shift: 1 and 0" in loaded.notes
    assert agree(net, loaded.module)


@pytest.mark.parametrize("layer", ["norm0", "denseblock2.denselayer1.norm2", "transition1.norm", "norm5"])
def test_a_norm_of_the_network_that_lost_its_scale_is_refused(layer):
    net = network()
    without_affine(net, net.features.get_submodule(layer))
    with pytest.raises(CheckpointError):
        load(net.state_dict())


@pytest.mark.parametrize("lost", ["weight", "bias"])
def test_half_a_norm_is_not_filled(lost):
    tensors = {f"norm.{name}": torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}
    del tensors[f"norm.{lost}"]
    assert with_affine_norms(tensors) == (tensors, ())


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_what_is_filled_has_the_type_of_the_variance(kind):
    plain, filled = with_affine_norms({"a.running_var": kind([2.0, 3.0])})
    assert filled == ("a",)
    assert {type(value) for value in plain.values()} == {type(kind([1.0]))}
    assert (plain["a.weight"].tolist(), plain["a.bias"].tolist()) == ([1, 1], [0, 0])
    assert plain["a.weight"].dtype == plain["a.running_var"].dtype


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("classifier.parametrizations.weight.original", "a parametrization"),
        ("parametrizations.bias.original1", "a parametrization"),
        ("features.conv0.weight_fake_quant.scale", "prepared for quantization"),
        ("features.norm0.activation_post_process.min_val", "prepared for quantization"),
        ("activation_post_process_3.scale", "prepared for quantization"),
    ],
)
def test_weights_that_only_their_own_code_computes_are_refused_by_name(name, says):
    with pytest.raises(CheckpointError) as caught:
        load({**network().state_dict(), name: torch.ones(1)})
    assert name in caught.value.why
    assert says in caught.value.why


@pytest.mark.parametrize("name", ["my_activation_post_processing.weight", "reparametrizations.weight"])
def test_names_that_are_only_alike_are_not_called_that(name):
    with pytest.raises(CheckpointError) as caught:
        load({**network().state_dict(), name: torch.ones(1)})
    assert "behind the last dense block" in caught.value.why


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_one_tensor_makes_the_opposite_of_a_computed_weight(way):
    layer = way(nn.Linear(6, 4)).eval()
    layer(torch.ones(1, 6))
    expected, tensors = -layer.weight.detach().clone(), layer.state_dict()
    tensors[name_of_sign("weight", tensors)].neg_()
    layer(torch.ones(1, 6))
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert name_of_sign("a.weight", ["a.weight", "a.weight_g"]) == "a.weight"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", [pruned, normalized, of_unit_gain])
def test_a_torchscript_program_with_a_computed_classifier_is_known(way):
    net = network()
    way(net.classifier)
    loaded = load(torch.jit.trace(net, images(), check_trace=False))
    assert loaded.spec is not None
    assert agree(net, loaded.module)

"""Weights from pruning masks and weight norms: the values that PyTorch itself computes."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from densenet_deploy.sources.checkpoint_file import CheckpointFile
from densenet_deploy.sources.reparametrized import with_computed_weights
from densenet_deploy.sources.weights import weights_from
from densenet_deploy.workflows.load import load
from tests.sources.torch_networks import agree, network


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


WAYS = (pruned, channels_pruned, normalized, normalized_as_before_2_0, normalized_whole, normalized_by_input)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 2)])
def test_the_weight_is_the_one_that_the_layer_computes_in_its_place(way, layer):
    made = nn.Sequential(nn.ReLU(), way(layer.__class__(*([6, 4] if isinstance(layer, nn.Linear) else [3, 4, 2]))))
    with torch.no_grad():
        for name, tensor in made.state_dict().items():  # otherwise g is the norm of v, and W is v
            if not name.endswith("mask"):
                tensor.mul_(3.0 if name.endswith(("_g", "original0")) else 1.5)
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
        ("weight_orig",),  # a spectral norm has no mask
        ("weight_orig", "weight_u", "weight_v"),
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
    assert "2 weights computed from pruning masks or weight norms" in weights.notes
    assert not any("mask" in note for note in weights.notes if "computed" not in note)
    loaded = load(net)
    assert loaded.spec is not None
    assert agree(net, loaded.module)

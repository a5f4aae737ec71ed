"""Costs counted from numbers equal those counted by running the network, layer by layer."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from densenet_deploy.analysis.cost import ModelCost, model_cost, network_part
from densenet_deploy.errors import UsageError
from densenet_deploy.models.build import empty_model
from densenet_deploy.variants import find_variant, variant_names
from densenet_deploy.variants.spec import DenseNetSpec

SMALL = DenseNetSpec(growth_rate=4, blocks=(3, 2, 2), init_features=6, num_classes=5, bn_size=2)
SPECS = {
    "bottleneck": SMALL,
    "plain": dataclasses.replace(SMALL, bn_size=0, stem="cifar", compression=1.0),
    "features": dataclasses.replace(SMALL, head="features"),
    "multiscale": dataclasses.replace(SMALL, head="multiscale"),
    "odd compression": dataclasses.replace(SMALL, compression=0.37),
}

# Parameters and billions of MACs at 224 pixels, counted by running the published networks.
PUBLISHED = {
    "121": (7_978_856, 2.834),
    "161": (28_681_000, 7.728),
    "169": (14_149_480, 3.360),
    "201": (20_013_928, 4.291),
    "264": (33_337_704, 5.752),
}


def counted_by_running(spec, image_size):
    """name → (parameters, MACs, output shape) of each layer, read by hooks from one image on the meta device."""
    counted = {}

    def record(name):
        def hook(module, inputs, output):
            weights = module.weight.numel()
            channels = output.shape[1]
            macs = 0 if isinstance(module, nn.BatchNorm2d) else weights * output.numel() // channels
            parameters = sum(parameter.numel() for parameter in module.parameters())
            counted[name] = (parameters, macs, tuple(output.shape[1:]))

        return hook

    model = empty_model(spec).eval()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.register_forward_hook(record(name))
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counted


@pytest.mark.parametrize("image_size", [32, 45])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_layer_costs_what_running_it_shows(spec, image_size):
    layers = model_cost(spec, image_size).layers
    expected = counted_by_running(spec, image_size)
    assert {layer.name: (layer.parameters, layer.macs, layer.output_shape) for layer in layers} == expected


@pytest.mark.parametrize("name", variant_names())
def test_totals_of_every_listed_variant_are_those_of_the_module(name):
    variant = find_variant(name)
    size = variant.preprocessing.image_size
    cost = model_cost(variant.spec, size)
    counted = counted_by_running(variant.spec, size).values()
    assert cost.parameters == sum(parameters for parameters, _, _ in counted)
    assert cost.macs == sum(macs for _, macs, _ in counted)


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_variants_cost_what_is_published(name):
    cost = model_cost(find_variant(name).spec)
    parameters, gigamacs = PUBLISHED[name]
    assert cost.parameters == parameters
    assert round(cost.macs / 1e9, 3) == gigamacs


def test_blocks_come_in_execution_order_and_add_up():
    cost = model_cost(SMALL, 32)
    names = [block.name for block in cost.blocks]
    assert names == ["stem", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "head"]
    assert sum(block.macs for block in cost.blocks) == sum(layer.macs for layer in cost.layers) == cost.macs


def test_json_holds_the_totals_and_every_layer():
    cost = model_cost(SMALL, 32)
    facts = json.loads(json.dumps(cost.to_json(), allow_nan=False))
    assert (facts["parameters"], facts["macs"]) == (cost.parameters, cost.macs)
    assert sum(layer["parameters"] for block in facts["blocks"] for layer in block["layers"]) == cost.parameters
    assert facts["blocks"][0]["layers"][0]["output_shape"] == [6, 16, 16]


def test_the_smallest_image_is_counted_and_one_pixel_less_is_refused():
    smallest = SMALL.smallest_image_size
    assert model_cost(SMALL, smallest).macs > 0
    with pytest.raises(UsageError) as caught:
        model_cost(SMALL, smallest - 1)
    assert caught.value.subject == f"image-size={smallest - 1}"


@pytest.mark.parametrize(
    "name", ["features.conv0_nchwc", "features.conv0:scaled:quantized", "/features/conv0/Conv", "conv0"]
)
def test_what_is_appended_to_a_name_leaves_it_in_its_part(name):
    assert network_part(name) == "stem"
    assert network_part(name.replace("conv0", "denseblock2.denselayer1.conv1")) == "denseblock2"
    assert network_part(name.replace("conv0", "conv0x")) == "other"


def test_unknown_layer_names_are_one_other_part():
    assert network_part("layer3.0.conv1") == "other"
    assert ModelCost.of([]).blocks == ()

"""Costs counted by hand for a tiny network, and equal to those counted by running networks, layer by layer."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from densenet_deploy.analysis.cost import (
    BlockCost,
    LayerCost,
    ModelCost,
    block_sizes,
    layer_inputs,
    model_cost,
    network_part,
    stem_size,
)
from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import sides
from densenet_deploy.models.build import BlurPool, empty_model
from densenet_deploy.variants import find_variant, variant_names
from densenet_deploy.variants.spec import DenseNetSpec

SMALL = DenseNetSpec(growth_rate=4, blocks=(3, 2, 2), init_features=6, num_classes=5, bn_size=2)
SPECS = {
    "bottleneck": SMALL,
    "plain": dataclasses.replace(SMALL, bn_size=0, stem="cifar", compression=1.0),
    "features": dataclasses.replace(SMALL, head="features"),
    "multiscale": dataclasses.replace(SMALL, head="multiscale"),
    "odd compression": dataclasses.replace(SMALL, compression=0.37),
    **{
        stem: dataclasses.replace(SMALL, stem=stem)
        for stem in ("imagenet-nopool", "3x3-pool", "3x3-nopool", "deep", "deep-blur")
    },
    "four channels": dataclasses.replace(SMALL, in_channels=4),
    "pruned": SMALL.with_bottlenecks([3, 8, 5, 1, 2, 9, 8]),
    "maxima": dataclasses.replace(SMALL, pooling="max-avg"),
    "hidden": dataclasses.replace(SMALL, hidden="norm linear:9 relu linear:8:nobias norm", bias=False),
    "hidden features": dataclasses.replace(SMALL, hidden="linear:9 relu", head="features"),
}

# Parameters and billions of MACs at 224 pixels, counted by running the published networks.
PUBLISHED = {
    "121": (7_978_856, 2.834),
    "161": (28_681_000, 7.728),
    "169": (14_149_480, 3.360),
    "201": (20_013_928, 4.291),
    "264": (33_337_704, 5.752),
}


# 16x16 pixels become 8x8 and 4x4; 2 channels enter block 1 and 8 leave it; 4 enter block 2 at 2x2 pixels, 7 leave it.
TINY = DenseNetSpec(growth_rate=3, blocks=(2, 1), init_features=2, bn_size=2, num_classes=5)

STEM = (LayerCost("features.conv0", 294, 294 * 64, (2, 8, 8)), LayerCost("features.norm0", 4, 0, (2, 8, 8)))
FIRST, SECOND = "features.denseblock1.denselayer1", "features.denseblock1.denselayer2"
BLOCK_1 = (
    LayerCost(f"{FIRST}.norm1", 4, 0, (2, 4, 4)),
    LayerCost(f"{FIRST}.conv1", 12, 12 * 16, (6, 4, 4)),
    LayerCost(f"{FIRST}.norm2", 12, 0, (6, 4, 4)),
    LayerCost(f"{FIRST}.conv2", 162, 162 * 16, (3, 4, 4)),
    LayerCost(f"{SECOND}.norm1", 10, 0, (5, 4, 4)),
    LayerCost(f"{SECOND}.conv1", 30, 30 * 16, (6, 4, 4)),
    LayerCost(f"{SECOND}.norm2", 12, 0, (6, 4, 4)),
    LayerCost(f"{SECOND}.conv2", 162, 162 * 16, (3, 4, 4)),
)
TRANSITION_1 = (
    LayerCost("features.transition1.norm", 16, 0, (8, 4, 4)),
    LayerCost("features.transition1.conv", 32, 32 * 16, (4, 4, 4)),
)
ONLY = "features.denseblock2.denselayer1"
BLOCK_2 = (
    LayerCost(f"{ONLY}.norm1", 8, 0, (4, 2, 2)),
    LayerCost(f"{ONLY}.conv1", 24, 24 * 4, (6, 2, 2)),
    LayerCost(f"{ONLY}.norm2", 12, 0, (6, 2, 2)),
    LayerCost(f"{ONLY}.conv2", 162, 162 * 4, (3, 2, 2)),
)
HEAD = (LayerCost("features.norm5", 14, 0, (7, 2, 2)), LayerCost("classifier", 7 * 5 + 5, 7 * 5, (5,)))
BLOCKS = {"stem": STEM, "denseblock1": BLOCK_1, "transition1": TRANSITION_1, "denseblock2": BLOCK_2, "head": HEAD}


def blocks_of(spec, image_size=16):
    return {block.name: block.layers for block in model_cost(spec, image_size).blocks}


def test_a_tiny_network_costs_what_is_counted_by_hand():
    assert blocks_of(TINY) == BLOCKS
    assert list(blocks_of(TINY)) == list(BLOCKS)


def test_a_network_of_features_has_no_classifier():
    assert blocks_of(dataclasses.replace(TINY, head="features")) == BLOCKS | {"head": HEAD[:1]}


def test_a_multiscale_head_reduces_every_block_to_128_channels():
    assert blocks_of(dataclasses.replace(TINY, head="multiscale"))["head"] == (
        LayerCost("head.reduce1.conv", 8 * 128 + 128, 8 * 128 * 16, (128, 4, 4)),
        LayerCost("head.reduce2.conv", 7 * 128 + 128, 7 * 128 * 4, (128, 2, 2)),
        LayerCost("classifier", 256 * 5 + 5, 256 * 5, (5,)),
    )


def test_a_plain_layer_is_one_convolution_and_the_cifar_stem_another():
    blocks = blocks_of(dataclasses.replace(TINY, bn_size=0, stem="cifar"), 4)
    assert blocks["stem"] == (LayerCost("features.conv0", 54, 54 * 16, (2, 4, 4)),)
    assert blocks["denseblock2"] == (
        LayerCost(f"{ONLY}.norm1", 8, 0, (4, 2, 2)),
        LayerCost(f"{ONLY}.conv1", 108, 108 * 4, (3, 2, 2)),
    )
    narrow = blocks_of(dataclasses.replace(TINY, bn_size=1))["denseblock2"]
    assert [layer.output_shape for layer in narrow] == [(4, 2, 2), (3, 2, 2), (3, 2, 2), (3, 2, 2)]


def test_a_deep_stem_convolves_three_times_and_its_blur_costs_macs_alone():
    blocks = blocks_of(dataclasses.replace(TINY, stem="deep-blur"))
    assert blocks["stem"] == (
        LayerCost("features.conv0", 81, 81 * 64, (3, 8, 8)),
        LayerCost("features.norm0", 6, 0, (3, 8, 8)),
        LayerCost("features.conv1", 81, 81 * 64, (3, 8, 8)),
        LayerCost("features.norm1", 6, 0, (3, 8, 8)),
        LayerCost("features.conv2", 54, 54 * 64, (2, 8, 8)),
        LayerCost("features.norm2", 4, 0, (2, 8, 8)),
        LayerCost("features.pool0.blur", 0, 9 * 2 * 16, (2, 4, 4)),
    )
    assert blocks["denseblock1"] == BLOCK_1


def test_hidden_layers_are_counted_one_by_one():
    hidden = dataclasses.replace(TINY, hidden="norm linear:9 relu linear:8:nobias norm", bias=False)
    layers = (
        HEAD[0],
        LayerCost("head.norm1", 14, 0, (7,)),
        LayerCost("head.linear1", 7 * 9 + 9, 7 * 9, (9,)),
        LayerCost("head.linear2", 9 * 8, 9 * 8, (8,)),
        LayerCost("head.norm2", 16, 0, (8,)),
    )
    assert blocks_of(hidden)["head"] == (*layers, LayerCost("classifier", 8 * 5, 8 * 5, (5,)))
    assert blocks_of(dataclasses.replace(hidden, head="features"))["head"] == layers


@pytest.mark.parametrize(
    ("stem", "image_size", "first", "sizes"),
    [
        ("imagenet", 224, 112, (56, 28, 14, 7)),
        ("imagenet", 45, 23, (12, 6, 3, 1)),
        ("imagenet", 29, 15, (8, 4, 2, 1)),
        ("cifar", 45, 45, (45, 22, 11, 5)),
        ("cifar", 8, 8, (8, 4, 2, 1)),
    ],
)
def test_the_stem_halves_rounding_up_and_transitions_rounding_down(stem, image_size, first, sizes):
    spec = DenseNetSpec(stem=stem)
    assert stem_size(spec, image_size) == (first, first)
    assert block_sizes(spec, image_size) == tuple((size, size) for size in sizes)


@pytest.mark.parametrize("size", [(224, 45), (45, 224)])
def test_height_and_width_halve_by_themselves(size):
    sides = {224: (56, 28, 14, 7), 45: (12, 6, 3, 1)}
    assert block_sizes(DenseNetSpec(), size) == tuple(zip(*(sides[side] for side in size), strict=True))
    assert stem_size(DenseNetSpec(), size) == tuple({224: 112, 45: 23}[side] for side in size)


def test_either_side_may_be_too_small():
    for size in ((29, 28), (28, 29)):
        with pytest.raises(UsageError) as caught:
            block_sizes(DenseNetSpec(), size)
        assert caught.value.subject == "image-size=28"


@pytest.mark.parametrize("size", [0, 65537])
def test_an_image_size_out_of_range_is_refused(size):
    single = DenseNetSpec(blocks=(1,), stem="cifar")
    assert (block_sizes(single, 1), block_sizes(single, 65536)) == (((1, 1),), ((65536, 65536),))
    with pytest.raises(UsageError) as caught:
        block_sizes(single, size)
    assert caught.value.subject == f"image-size={size}"


def test_layers_of_a_block_read_what_came_before():
    assert list(layer_inputs(TINY, 0)) == [2, 5]
    assert list(layer_inputs(TINY, 1)) == [4]


def test_images_have_224_pixels_unless_told_otherwise():
    assert model_cost(TINY) == model_cost(TINY, 224)


def test_layers_are_grouped_by_the_names_of_their_parts():
    one, two, three = (LayerCost(name, 1, 2, (3,)) for name in ("conv0", "elsewhere", "features.norm0"))
    assert ModelCost.of([one, two, three]) == ModelCost((BlockCost("stem", (one, three)), BlockCost("other", (two,))))
    assert ModelCost.of([]).blocks == ()


def counted_by_running(spec, image_size):
    """name → (parameters, MACs, output shape) of each layer, read by hooks from one image on the meta device."""
    counted = {}

    def record(name):
        def hook(module, inputs, output):
            weights = (module.filter if isinstance(module, BlurPool) else module.weight).numel()
            channels = output.shape[1]
            macs = 0 if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) else weights * output.numel() // channels
            parameters = sum(parameter.numel() for parameter in module.parameters())
            counted[name] = (parameters, macs, tuple(output.shape[1:]))

        return hook

    model = empty_model(spec).eval()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear, BlurPool)):
            module.register_forward_hook(record(name))
    model(torch.empty(1, spec.in_channels, *sides(image_size), device="meta"))
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [32, 45, (32, 45), (61, 32)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_layer_costs_what_running_it_shows(spec, image_size):
    layers = model_cost(spec, image_size).layers
    expected = counted_by_running(spec, image_size)
    assert {layer.name: (layer.parameters, layer.macs, layer.output_shape) for layer in layers} == expected


@pytest.mark.slow
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


def test_json_holds_the_totals_and_every_layer():
    conv, norm = STEM
    facts = {
        "parameters": 298,
        "macs": 294 * 64,
        "blocks": [
            {
                "name": "stem",
                "parameters": 298,
                "macs": 294 * 64,
                "layers": [
                    {"name": "features.conv0", "parameters": 294, "macs": 294 * 64, "output_shape": [2, 8, 8]},
                    {"name": "features.norm0", "parameters": 4, "macs": 0, "output_shape": [2, 8, 8]},
                ],
            }
        ],
    }
    cost = ModelCost.of([conv, norm])
    assert json.loads(json.dumps(cost.to_json(), allow_nan=False)) == facts
    whole = model_cost(TINY, 16)
    assert whole.layers == (*STEM, *BLOCK_1, *TRANSITION_1, *BLOCK_2, *HEAD)
    assert whole.parameters == sum(block.parameters for block in whole.blocks) == 298 + 404 + 48 + 206 + 54
    assert whole.macs == sum(block.macs for block in whole.blocks) == 18816 + 5856 + 512 + 744 + 35


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


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("stem", ("conv0", "norm0", "relu0", "pool0", "conv1", "norm2", "relu1", "pool0.blur")),
        ("head", ("norm5", "relu5", "head", "classifier", "logits")),
        ("denseblock1", ("denseblock1", "denseblock1.denselayer12.conv2")),
        ("transition3", ("transition3", "transition3.norm")),
        ("other", ("layer3", "conv", "norm3", "_conv0", "mydenseblock1", "1denseblock", "denselayer1", "")),
    ],
)
def test_every_name_of_a_densenet_belongs_to_a_part(part, names):
    for name in names:
        for written in (
            name,
            f"features.{name}",
            f"/features/{name}",
            f"{name}.weight",
            f"{name}:0",
            f"{name}_quantized",
        ):
            assert network_part(written) == part, written

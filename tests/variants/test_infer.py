"""Shapes of parameters back to numbers: the inverse of building, and the refusal of everything else."""

import dataclasses

import pytest

from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.build import empty_model
from densenet_deploy.variants import find_variant
from densenet_deploy.variants.infer import spec_from_shapes
from densenet_deploy.variants.spec import DenseNetSpec

TINY = DenseNetSpec(growth_rate=4, blocks=(2, 3), init_features=8, stem="cifar", num_classes=5)
ODD = [
    TINY,
    find_variant("121").spec,
    find_variant("cifar-40-12").spec,
    DenseNetSpec(growth_rate=7, blocks=(1,), init_features=3, bn_size=1),
    DenseNetSpec(growth_rate=1, blocks=(1, 1), init_features=8, bn_size=1, num_classes=1),
    DenseNetSpec(growth_rate=5, blocks=(1, 2, 3, 1, 2), init_features=9, bn_size=3, compression=0.7),
    DenseNetSpec(growth_rate=24, blocks=(4, 4), init_features=50, compression=0.75),
    DenseNetSpec(growth_rate=6, blocks=(2, 2), init_features=5, bn_size=0, compression=1.0, stem="cifar"),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), head="multiscale", num_classes=3),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), head="features"),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), in_channels=1, bias=False, num_classes=1),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), in_channels=4, stem="3x3-pool"),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, stem="deep"),
    find_variant("264d").spec,
    find_variant("blur121d").spec,
    DenseNetSpec(growth_rate=4, blocks=(2, 1), init_features=8).with_bottlenecks([7, 16, 3]),
    DenseNetSpec(growth_rate=4, blocks=(2, 1), init_features=8).with_bottlenecks([9, 9, 9]),
]


def shapes_of(spec):
    return {name: tuple(tensor.shape) for name, tensor in empty_model(spec).state_dict().items()}


@pytest.mark.parametrize("spec", ODD)
def test_odd_specs_are_read_back(spec):
    assert spec_from_shapes(shapes_of(spec)) == spec


def test_a_compression_that_the_shapes_do_not_tell_is_read_as_the_simplest_with_the_same_shapes():
    spec = dataclasses.replace(TINY, compression=0.5123)
    read = spec_from_shapes(shapes_of(spec))
    assert read.compression == 0.5
    assert shapes_of(read) == shapes_of(spec)


def plain_shapes(kept, channels, layers=1):
    """Two blocks of plain layers, and a transition that keeps `kept` of `channels`."""
    return {
        "features.conv0.weight": (8, 3, 3, 3),
        "features.denseblock1.denselayer1.conv1.weight": (8, 8, 3, 3),
        f"features.denseblock1.denselayer{layers}.norm1.weight": (8,),
        "features.transition1.conv.weight": (kept, channels, 1, 1),
        "features.denseblock2.denselayer1.norm1.weight": (8,),
    }


@pytest.mark.parametrize(
    ("kept", "channels", "simplest"),
    [
        (1, 3, 0.5),  # before 0.4, which gives the same
        (3, 3, 1.0),
        (1, 19, 0.1),  # 0.1 and not 0.06
        (5, 19, 0.3),  # 0.3 and not 0.27
        (73, 199, 0.37),  # 0.37 and not 0.367
        (741, 1999, 0.371),  # 0.371 and not 0.3707
        (7423, 19993, 0.3713),  # 0.3713 and not 0.37128
    ],
)
def test_a_compression_has_as_few_decimals_as_the_transition_allows(kept, channels, simplest):
    assert spec_from_shapes(plain_shapes(kept, channels)).compression == simplest


def test_one_compression_must_give_every_transition():
    shapes = plain_shapes(4, 8) | {
        "features.transition2.conv.weight": (5, 5, 1, 1),
        "features.denseblock3.denselayer1.norm1.weight": (8,),
    }
    with pytest.raises(CheckpointError):
        spec_from_shapes(shapes)


def test_the_order_of_the_names_does_not_matter():
    assert spec_from_shapes(dict(reversed(shapes_of(TINY).items()))) == TINY


def test_layers_are_counted_by_the_highest_index_of_up_to_three_digits():
    assert spec_from_shapes(plain_shapes(4, 8, layers=512)).blocks == (512, 1)


@pytest.mark.parametrize("classes", [1, 1_000_000])
def test_class_counts_within_the_limits(classes):
    assert spec_from_shapes(shapes_of(TINY) | {"classifier.weight": (classes, 8)}).num_classes == classes


@pytest.mark.parametrize("stem", ["imagenet-nopool", "3x3-nopool", "deep-blur"])
def test_of_stems_with_the_same_parameters_the_first_is_taken(stem):
    spec = DenseNetSpec(growth_rate=4, blocks=(2, 2), init_features=8, stem=stem)
    first = {"imagenet-nopool": "imagenet", "3x3-nopool": "3x3-pool", "deep-blur": "deep"}[stem]
    assert spec_from_shapes(shapes_of(spec)) == dataclasses.replace(spec, stem=first)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"features.conv0.weight": (8, 3, 7, 7)}, "stem of 7x7 without norm0"),
        ({"features.conv0.weight": (8, 3, 5, 5), "features.norm0.weight": (8,)}, "stem of 5x5 with norm0"),
        (
            {
                "features.conv0.weight": (4, 3, 3, 3),
                "features.conv1.weight": (8, 4, 3, 3),
                "features.norm0.weight": (4,),
            },
            "stem of 2 convolutions of 3x3 with norm0",
        ),
    ],
)
def test_other_stems_are_refused_by_what_they_are(shapes, reason):
    with pytest.raises(CheckpointError) as caught:
        spec_from_shapes(shapes_of(TINY) | shapes)
    assert reason in caught.value.why
    assert "deep (3 of 3x3 with norm0)" in caught.value.why


def test_a_missing_layer_does_not_hide_the_variant():
    shapes = {name: shape for name, shape in shapes_of(TINY).items() if "denseblock2.denselayer2" not in name}
    assert spec_from_shapes(shapes) == TINY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features.conv0.weight": None}, "features.conv0.weight is missing"),
        ({"features.conv0.weight": (8, 3, 5, 5)}, "5x5"),
        ({"features.conv0.weight": (8,)}, "square convolution"),
        ({"features.conv0.weight": (8, 3, 3, 7)}, "square convolution"),
        ({"features.conv0.weight": (0, 3, 3, 3)}, "init-features=0"),
        ({"features.denseblock1.denselayer1.conv2.weight": (0, 16, 3, 3)}, "add no channels"),
        ({"features.denseblock2.denselayer3.conv1.weight": (0, 16, 1, 1)}, "bottlenecks=0"),
        ({"features.denseblock4.denselayer1.norm1.weight": (8,)}, "block 3 of 4 is missing"),
        ({"features.transition1.conv.weight": (99, 16, 1, 1)}, "no single compression"),
        ({"classifier.weight": (5, 8, 1, 1)}, "classifier"),
        ({"classifier.weight": (0, 8)}, "classifier"),
        ({"classifier.weight": (1_000_001, 8)}, "classifier"),
        ({"classifier.weight": (5,)}, "classifier"),
    ],
)
def test_shapes_of_another_network_are_refused_with_the_reason(change, reason):
    shapes = {name: shape for name, shape in (shapes_of(TINY) | change).items() if shape is not None}
    with pytest.raises(CheckpointError) as caught:
        spec_from_shapes(shapes)
    assert reason in caught.value.why


def test_an_empty_state_dict_is_not_a_densenet():
    with pytest.raises(CheckpointError):
        spec_from_shapes({})


def test_layers_are_counted_from_one():
    shapes = {
        name.replace("denseblock2.denselayer1.", "denseblock2.denselayer0."): shape
        for name, shape in plain_shapes(4, 8).items()
    }
    with pytest.raises(CheckpointError) as caught:
        spec_from_shapes(shapes)
    assert "blocks=0" in caught.value.why

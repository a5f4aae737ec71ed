"""Shapes of parameters back to numbers: the inverse of building, and the refusal of everything else."""

import dataclasses

import pytest

from densenet_deploy.errors import CheckpointError
from densenet_deploy.models.build import empty_model
from densenet_deploy.variants import find_variant, variant_names
from densenet_deploy.variants.infer import spec_from_shapes
from densenet_deploy.variants.spec import DenseNetSpec

TINY = DenseNetSpec(growth_rate=4, blocks=(2, 3), init_features=8, stem="cifar", num_classes=5)
ODD = [
    TINY,
    DenseNetSpec(growth_rate=7, blocks=(1,), init_features=3, bn_size=1),
    DenseNetSpec(growth_rate=5, blocks=(1, 2, 3, 1, 2), init_features=9, bn_size=3, compression=0.7),
    DenseNetSpec(growth_rate=24, blocks=(4, 4), init_features=50, compression=0.75),
    DenseNetSpec(growth_rate=6, blocks=(2, 2), init_features=5, bn_size=0, compression=1.0, stem="cifar"),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), head="multiscale", num_classes=3),
    DenseNetSpec(growth_rate=4, blocks=(2, 2), head="features"),
]


def shapes_of(spec):
    return {name: tuple(tensor.shape) for name, tensor in empty_model(spec).state_dict().items()}


@pytest.mark.parametrize("name", variant_names())
def test_named_variants_are_read_back(name):
    spec = dataclasses.replace(find_variant(name).spec, num_classes=17)
    assert spec_from_shapes(shapes_of(spec)) == spec


@pytest.mark.parametrize("spec", ODD)
def test_odd_specs_are_read_back(spec):
    assert spec_from_shapes(shapes_of(spec)) == spec


def test_a_compression_that_the_shapes_do_not_tell_is_read_as_the_simplest_with_the_same_shapes():
    spec = dataclasses.replace(TINY, compression=0.5123)
    read = spec_from_shapes(shapes_of(spec))
    assert read.compression == 0.5
    assert shapes_of(read) == shapes_of(spec)


def test_a_missing_layer_does_not_hide_the_variant():
    shapes = {name: shape for name, shape in shapes_of(TINY).items() if "denseblock2.denselayer2" not in name}
    assert spec_from_shapes(shapes) == TINY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features.conv0.weight": None}, "features.conv0.weight is missing"),
        ({"features.conv0.weight": (8, 3, 5, 5)}, "5x5"),
        ({"features.conv0.weight": (8,)}, "square convolution"),
        ({"features.conv0.weight": (0, 3, 3, 3)}, "init-features=0"),
        ({"features.denseblock1.denselayer1.conv1.weight": (15, 8, 1, 1)}, "not a multiple"),
        ({"features.denseblock1.denselayer1.conv2.weight": (0, 16, 3, 3)}, "not a multiple"),
        ({"features.denseblock4.denselayer1.norm1.weight": (8,)}, "block 3 of 4 is missing"),
        ({"features.transition1.conv.weight": (99, 16, 1, 1)}, "no single compression"),
        ({"features.conv0.weight": (8, 1, 3, 3)}, "reads 1 channels"),
        ({"classifier.weight": None, "classifier.1.weight": (5, 8)}, "classifier.1.weight"),
        ({"classifier.weight": (5, 8, 1, 1)}, "classifier"),
        ({"classifier.weight": (0, 8)}, "classifier"),
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

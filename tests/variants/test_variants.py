"""Names of DenseNets: many spellings of one, families with rules, and neighbours of what has no name."""

import dataclasses
import re

import pytest

from densenet_deploy.errors import UnknownNameError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants import (
    closest_variant,
    custom_variant,
    find_variant,
    is_variant,
    variant_for,
    variant_names,
    variant_with,
)
from densenet_deploy.variants.cifar import CIFAR_PREPROCESSING
from densenet_deploy.variants.spec import DenseNetSpec


@pytest.mark.parametrize("name", ["121", "densenet121", "DenseNet-121", "densenet_121", " 121 "])
def test_spellings_of_one_variant(name):
    assert find_variant(name).name == "121"


@pytest.mark.parametrize("name", variant_names())
def test_listed_names_are_found_again_from_name_artifact_and_spec(name):
    variant = find_variant(name)
    assert variant.name == name
    assert find_variant(variant.artifact_name) == variant
    assert variant_for(variant.spec) == variant


def test_numbers_change_a_variant_and_its_name():
    assert variant_with(None, {}) == find_variant("121")
    assert variant_with("169", {"blocks": (6, 12, 24, 16)}).name == "121"
    assert variant_with("121", {"growth_rate": 12}).name.startswith("custom-k12")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        find_variant("1211")
    assert caught.value.subject == "1211"
    assert "'121'" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "known"),
    [("121", True), ("DenseNet-169", True), ("cifar-41-12", True), ("imagenet", False), ("densenetdensenet121", False)],
)
def test_a_name_is_known_or_not_even_if_its_numbers_make_no_network(name, known):
    assert is_variant(name) is known


@pytest.mark.parametrize("name", ["densenet-densenet-121", "121densenet", "net-densenet121"])
def test_a_name_begins_with_densenet_once(name):
    with pytest.raises(UnknownNameError):
        find_variant(name)


def test_the_listed_names_are_these():
    assert variant_names() == (
        *("cifar-40-12", "cifar-100-12", "cifar-100-24", "cifar-bc-100-12", "cifar-bc-250-24", "cifar-bc-190-40"),
        *("121", "161", "169", "201", "264"),
        *("blur121d", "264d"),
    )


def test_images_of_a_custom_network_are_those_of_its_stem():
    assert custom_variant(DenseNetSpec(growth_rate=3)).preprocessing == Preprocessing()
    assert custom_variant(DenseNetSpec(growth_rate=3, stem="deep")).preprocessing == Preprocessing()
    for stem in ("cifar", "3x3-pool", "3x3-nopool"):
        assert custom_variant(DenseNetSpec(growth_rate=3, stem=stem)).preprocessing == CIFAR_PREPROCESSING


def test_custom_names_are_stable_distinct_and_safe_in_file_names():
    spec = DenseNetSpec(growth_rate=12, blocks=(6, 6, 6), init_features=24, stem="cifar")
    variant = custom_variant(spec)
    name = variant.name
    assert variant.spec == spec
    assert name == "custom-k12-b6.6.6-i24-c0.5-n4-cifar"
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    changes = ({"growth_rate": 13}, {"blocks": (6, 6)}, {"init_features": 25}, {"compression": 0.6}, {"bn_size": 2})
    assert len({name} | {custom_variant(dataclasses.replace(spec, **change)).name for change in changes}) == 6


def test_the_name_of_a_pruned_network_says_how_wide_its_bottlenecks_are_on_average():
    pruned = DenseNetSpec(growth_rate=8, blocks=(1, 1)).with_bottlenecks([20, 32])
    assert custom_variant(pruned).name == "custom-k8-b1.1-i64-c0.5-n4-w0.81-imagenet"  # 52 of 2 x 4 x 8 channels


def test_classes_and_dropout_keep_the_name():
    variant = variant_for(dataclasses.replace(find_variant("169").spec, num_classes=7, drop_rate=0.2))
    assert (variant.name, variant.spec.num_classes, variant.spec.drop_rate) == ("169", 7, 0.2)


def test_cifar_depths_outside_the_list_have_names_too():
    assert closest_variant(find_variant("cifar-bc-40-24").spec).name == "cifar-bc-40-24"


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ({"blocks": (6, 12, 32, 31)}, "169"),
        ({"blocks": (6, 12, 47, 32)}, "201"),
        ({"growth_rate": 47, "init_features": 90}, "161"),
        ({"blocks": (6, 12, 24)}, "121"),
        ({"stem": "cifar", "blocks": (16, 16, 15), "growth_rate": 12, "init_features": 24}, "cifar-bc-100-12"),
        ({"stem": "cifar", "blocks": (16, 16, 15), "growth_rate": 12, "bn_size": 0}, "cifar-40-12"),
        ({"stem": "cifar", "blocks": (23, 22, 22), "growth_rate": 13, "bn_size": 0}, "cifar-100-12"),
        # as far from either in growth rate and in layers: the first convolution decides
        ({"stem": "cifar", "blocks": (36, 36, 36), "growth_rate": 32, "init_features": 50}, "cifar-bc-250-24"),
        ({"stem": "cifar", "blocks": (36, 36, 36), "growth_rate": 32, "init_features": 78}, "cifar-bc-190-40"),
    ],
)
def test_the_closest_variant_of_a_custom_spec(change, nearest):
    assert closest_variant(DenseNetSpec(**change)).name == nearest

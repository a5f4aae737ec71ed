"""Names of DenseNets: many spellings of one, families with rules, and neighbours of what has no name."""

import dataclasses
import re

import pytest

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.variants import (
    closest_variant,
    custom_variant,
    find_variant,
    variant_for,
    variant_names,
    variant_with,
)
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


def test_cifar_plain_and_bottleneck():
    plain, bottleneck = find_variant("cifar-40-12").spec, find_variant("cifar-bc-100-12").spec
    assert (plain.blocks, plain.bn_size, plain.init_features, plain.compression) == ((12, 12, 12), 0, 16, 1.0)
    assert (bottleneck.blocks, bottleneck.bn_size, bottleneck.init_features, bottleneck.compression) == (
        (16, 16, 16),
        4,
        24,
        0.5,
    )


def test_cifar_images_are_used_whole():
    preprocessing = find_variant("cifar-40-12").preprocessing
    assert (preprocessing.image_size, preprocessing.resize) == (32, 36)


@pytest.mark.parametrize(
    ("name", "depths"),
    [("cifar-41-12", "40 or 43"), ("cifar-bc-41-12", "40 or 46"), ("cifar-bc-4-12", "10"), ("cifar-1-12", "7")],
)
def test_a_depth_that_does_not_fit_names_the_nearest(name, depths):
    with pytest.raises(UsageError) as caught:
        find_variant(name)
    assert caught.value.subject == name
    assert caught.value.fix.endswith(depths)


def test_a_growth_rate_of_zero_is_refused():
    with pytest.raises(UsageError) as caught:
        find_variant("cifar-40-0")
    assert caught.value.subject == "growth-rate=0"


def test_custom_names_are_stable_distinct_and_safe_in_file_names():
    spec = DenseNetSpec(growth_rate=12, blocks=(6, 6, 6), init_features=24, stem="cifar")
    name = custom_variant(spec).name
    assert name == "custom-k12-b6.6.6-i24-c0.5-n4-cifar"
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    changes = ({"growth_rate": 13}, {"blocks": (6, 6)}, {"init_features": 25}, {"compression": 0.6}, {"bn_size": 2})
    assert len({name} | {custom_variant(dataclasses.replace(spec, **change)).name for change in changes}) == 6


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
        ({"stem": "cifar", "blocks": (16, 16, 15), "growth_rate": 12, "init_features": 24}, "cifar-bc-100-12"),
    ],
)
def test_the_closest_variant_of_a_custom_spec(change, nearest):
    assert closest_variant(DenseNetSpec(**change)).name == nearest

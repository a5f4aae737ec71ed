"""The CIFAR family: names with rules, the numbers that they stand for, and the depths that there are."""

import dataclasses

import pytest

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.cifar import CIFAR_PREPROCESSING, CifarFamily
from densenet_deploy.variants.spec import DenseNetSpec

FAMILY = CifarFamily()


def plain(layers, growth_rate):
    return DenseNetSpec(growth_rate, (layers, layers, layers), 16, 1.0, 0, 0.0, "cifar", 10)


def bottleneck(layers, growth_rate):
    return DenseNetSpec(growth_rate, (layers, layers, layers), 2 * growth_rate, 0.5, 4, 0.0, "cifar", 10)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("cifar-40-12", plain(12, 12)),
        ("cifar-100-12", plain(32, 12)),
        ("cifar-100-24", plain(32, 24)),
        ("cifar-7-1", plain(1, 1)),
        ("cifar-bc-100-12", bottleneck(16, 12)),
        ("cifar-bc-250-24", bottleneck(41, 24)),
        ("cifar-bc-190-40", bottleneck(31, 40)),
        ("cifar-bc-10-1024", bottleneck(1, 1024)),
    ],
)
def test_a_name_stands_for_depth_and_growth_rate(name, spec):
    variant = FAMILY.find(name)
    assert (variant.name, variant.spec, variant.preprocessing) == (name, spec, CIFAR_PREPROCESSING)
    assert FAMILY.like(dataclasses.replace(spec, num_classes=3)) == variant


def test_the_networks_of_the_paper_are_listed():
    assert FAMILY.names == (
        *("cifar-40-12", "cifar-100-12", "cifar-100-24"),
        *("cifar-bc-100-12", "cifar-bc-250-24", "cifar-bc-190-40"),
    )


@pytest.mark.parametrize(
    "name", ["121", "cifar-40", "cifar-40-12-", "xcifar-40-12", "cifar-cb-40-12", "cifar-12345-12"]
)
def test_other_names_are_of_another_family(name):
    assert FAMILY.find(name) is None


@pytest.mark.parametrize(
    "spec",
    [
        DenseNetSpec(blocks=(3,), stem="cifar"),
        DenseNetSpec(),
        dataclasses.replace(plain(12, 12), blocks=(12, 12, 11)),
        dataclasses.replace(bottleneck(16, 12), init_features=25),
    ],
)
def test_other_architectures_are_of_another_family(spec):
    assert FAMILY.like(spec) is None


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("cifar-41-12", "40 or 43"),
        ("cifar-42-12", "40 or 43"),
        ("cifar-8-12", "7 or 10"),
        ("cifar-5-12", "7"),
        ("cifar-4-12", "7"),
        ("cifar-1-12", "7"),
        ("cifar-bc-41-12", "40 or 46"),
        ("cifar-bc-11-12", "10 or 16"),
        ("cifar-bc-4-12", "10"),
        ("cifar-bc-7-12", "10"),
    ],
)
def test_a_depth_that_does_not_fit_names_the_nearest(name, depths):
    with pytest.raises(UsageError) as caught:
        FAMILY.find(name)
    assert (caught.value.subject, caught.value.fix) == (name, f"the nearest depth that fits is {depths}")


def test_a_growth_rate_of_zero_is_refused():
    with pytest.raises(UsageError) as caught:
        FAMILY.find("cifar-40-0")
    assert caught.value.subject == "growth-rate=0"


def test_images_have_32_pixels():
    assert Preprocessing(32, 36, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "bilinear") == CIFAR_PREPROCESSING

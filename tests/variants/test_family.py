"""What every family of DenseNets can do, and which there are."""

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.family import Family, Variant, families
from densenet_deploy.variants.spec import DenseNetSpec


class Mine(Family):
    names = ("mine-2", "mine-9", "mine-3")

    def find(self, name):
        layers = int(name[-1])
        return Variant(name, DenseNetSpec(blocks=(layers,)), Preprocessing()) if layers < 9 else None


def test_the_listed_variants_are_those_that_are_found():
    assert [variant.name for variant in Mine().variants()] == ["mine-2", "mine-3"]


def test_a_variant_is_found_by_its_architecture():
    assert Mine().like(DenseNetSpec(blocks=(3,), num_classes=7)).name == "mine-3"
    assert Mine().like(DenseNetSpec(blocks=(4,))) is None


def test_files_are_named_after_the_variant():
    assert Variant("121", DenseNetSpec(), Preprocessing()).artifact_name == "densenet121"
    assert Variant("mine-2", DenseNetSpec(), Preprocessing()).artifact_name == "densenet-mine-2"


def test_every_file_of_the_package_adds_its_family():
    assert families.names() == ("cifar", "imagenet", "timm")

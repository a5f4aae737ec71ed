"""Untrained networks: by the name of a variant, or as the constraint says; the seed decides the weights."""

import sys
from pathlib import Path

import pytest

from densenet_deploy.errors import MissingPackageError, UsageError, install_command
from densenet_deploy.manifest import Preprocessing, WeightsOrigin
from densenet_deploy.sources import LoadedNetwork, Match, WeightsConstraint
from densenet_deploy.sources.untrained import UntrainedSource
from densenet_deploy.sources.weights import weights_sha256
from densenet_deploy.variants import Variant, find_variant, variant_for, variant_names
from densenet_deploy.variants.spec import DenseNetSpec

SOURCE = UntrainedSource()
TINY = DenseNetSpec(growth_rate=2, blocks=(1,), init_features=4, stem="cifar", num_classes=4)


def test_no_weights_of_the_variant_that_is_asked_for():
    variant = variant_for(TINY)
    loaded = SOURCE.load("none", WeightsConstraint(variant=variant, num_classes=3, head="features"))
    assert (loaded.variant.name, loaded.module.spec) == (variant.name, loaded.variant.spec)
    assert (loaded.variant.spec.num_classes, loaded.variant.spec.head) == (3, "features")
    assert loaded == LoadedNetwork(
        name=variant.artifact_name,
        origin=WeightsOrigin("none", weights_sha256(loaded.module.state_dict()), 0),
        module=loaded.module,
        variant=loaded.variant,
        output_names=("features",),
    )


def test_no_weights_of_no_variant_are_densenet_121():
    assert SOURCE.load("none", WeightsConstraint(head="features")).name == "densenet121"


def test_the_seed_decides_the_weights_and_is_kept():
    one, again, other = (SOURCE.load("cifar-7-2", WeightsConstraint(seed=seed)) for seed in (0, 0, 5))
    assert one.origin == again.origin
    assert one.origin.sha256 != other.origin.sha256
    assert (other.origin.seed, other.variant) == (5, find_variant("cifar-7-2"))


def test_a_name_and_the_same_variant_with_other_numbers_are_no_contradiction():
    loaded = SOURCE.load("DenseNet-121", WeightsConstraint(variant=Variant("121", TINY, Preprocessing(image_size=40))))
    assert (loaded.name, loaded.module.spec) == ("densenet121", TINY)
    assert loaded.variant.preprocessing == Preprocessing()


def test_two_variants_contradict_each_other():
    with pytest.raises(UsageError) as caught:
        SOURCE.load("cifar-7-1", WeightsConstraint(variant=find_variant("cifar-7-2")))
    assert caught.value.subject == "cifar-7-1"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        *((name, Match.CERTAIN) for name in ("none", "121", "DenseNet-169", "cifar-41-12")),
        *((other, Match.NO) for other in ("None", "imagenet", "a.pth", Path("none"), 121, b"121")),
    ],
    ids=str,
)
def test_names_of_variants_and_none_are_untrained(source, match):
    assert SOURCE.matches(source) is match


def test_all_variants_and_none_are_suggested():
    assert SOURCE.names == ("none", *variant_names())


def test_torch_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError) as caught:
        SOURCE.load("none", WeightsConstraint())
    assert caught.value.subject == "torch"
    assert install_command("export") in caught.value.fix

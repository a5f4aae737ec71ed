"""The ImageNet family: the numbers of each, as published, and no others."""

import pytest

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.imagenet import ImageNetFamily
from densenet_deploy.variants.spec import DenseNetSpec

# layers per block, growth rate, and channels of the first convolution, of table 1 of the paper and of torchvision
PUBLISHED = {
    "121": ((6, 12, 24, 16), 32, 64),
    "161": ((6, 12, 36, 24), 48, 96),
    "169": ((6, 12, 32, 32), 32, 64),
    "201": ((6, 12, 48, 32), 32, 64),
    "264": ((6, 12, 64, 48), 32, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_the_published_ones(name):
    blocks, growth_rate, init_features = PUBLISHED[name]
    variant = ImageNetFamily().find(name)
    assert variant.name == name
    assert variant.spec == DenseNetSpec(growth_rate, blocks, init_features, 0.5, 4, 0.0, "imagenet", 1000, "classifier")
    assert variant.preprocessing == Preprocessing()


def test_no_others_are_known():
    assert ImageNetFamily().names == tuple(PUBLISHED)
    assert ImageNetFamily().find("122") is None

"""The ImageNet family: 121, 161, 169, 201 as in torchvision and 264 of the paper; four blocks, BC, 224 pixels."""

from __future__ import annotations

from typing import Final

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.family import Family, Variant, families
from densenet_deploy.variants.spec import DenseNetSpec

_SPECS: Final = {
    "121": DenseNetSpec(blocks=(6, 12, 24, 16)),
    "161": DenseNetSpec(blocks=(6, 12, 36, 24), growth_rate=48, init_features=96),
    "169": DenseNetSpec(blocks=(6, 12, 32, 32)),
    "201": DenseNetSpec(blocks=(6, 12, 48, 32)),
    "264": DenseNetSpec(blocks=(6, 12, 64, 48)),
}


@families.register("imagenet")
class ImageNetFamily(Family):
    """DenseNets for images of 224 pixels, named by their depth."""

    names = tuple(_SPECS)

    def find(self, name: str) -> Variant | None:
        spec = _SPECS.get(name)
        return None if spec is None else Variant(name, spec, Preprocessing())

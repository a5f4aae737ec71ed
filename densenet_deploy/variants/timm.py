"""The DenseNets that only timm has: `blur121d` and `264d`, with three 3x3 convolutions in the stem.

They are its `densenetblur121d`, whose stem blurs before it drops every other pixel, and `densenet264d`. timm's other
DenseNets are torchvision's.
"""

from __future__ import annotations

from typing import Final

from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.family import Family, Variant, families
from densenet_deploy.variants.spec import DenseNetSpec

_SPECS: Final = {
    "blur121d": DenseNetSpec(blocks=(6, 12, 24, 16), stem="deep-blur"),
    "264d": DenseNetSpec(blocks=(6, 12, 64, 48), growth_rate=48, init_features=96, stem="deep"),
}


@families.register("timm")
class TimmFamily(Family):
    """DenseNets with a deep stem for images of 224 pixels, resized as timm does."""

    names = tuple(_SPECS)

    def find(self, name: str) -> Variant | None:
        spec = _SPECS.get(name)
        return None if spec is None else Variant(name, spec, Preprocessing(interpolation="bicubic"))

"""The CIFAR family of the paper: `cifar-L-k` (plain) and `cifar-bc-L-k`; three equal blocks, 32 pixels.

A depth L counts the stem, two transitions and the classifier; a block has (L−4)/3 plain or (L−4)/6 bottleneck layers.
"""

from __future__ import annotations

import re
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.variants.family import Family, Variant, families
from densenet_deploy.variants.spec import DenseNetSpec

_NAME: Final = re.compile(r"cifar-(bc-)?(\d{1,4})-(\d{1,4})")

# The rule for all variants, resize to 256/224 of the size and crop, holds here too: it suits photographs of any size.
# Whole images of 32 pixels, as in the CIFAR files themselves, want resize=32.
CIFAR_PREPROCESSING: Final = Preprocessing(
    image_size=32, resize=36, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)


@families.register("cifar")
class CifarFamily(Family):
    """DenseNets for images of 32 pixels, named by depth and growth rate; listed are those of the paper."""

    names = ("cifar-40-12", "cifar-100-12", "cifar-100-24", "cifar-bc-100-12", "cifar-bc-250-24", "cifar-bc-190-40")

    def find(self, name: str) -> Variant | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        bottleneck, depth, growth_rate = match[1] is not None, int(match[2]), int(match[3])
        return _variant(_layers_per_block(name, depth, 6 if bottleneck else 3), growth_rate, bottleneck=bottleneck)

    def like(self, spec: DenseNetSpec) -> Variant | None:
        variant = _variant(spec.blocks[0], spec.growth_rate, bottleneck=bool(spec.bn_size))
        return variant if variant.spec.same_architecture(spec) else None


def _variant(layers: int, growth_rate: int, *, bottleneck: bool) -> Variant:
    spec = DenseNetSpec(
        growth_rate=growth_rate,
        blocks=(layers,) * 3,
        init_features=2 * growth_rate if bottleneck else 16,
        compression=0.5 if bottleneck else 1.0,
        bn_size=4 if bottleneck else 0,
        stem="cifar",
        num_classes=10,
    )
    name = f"cifar-bc-{6 * layers + 4}-{growth_rate}" if bottleneck else f"cifar-{3 * layers + 4}-{growth_rate}"
    return Variant(name, spec, CIFAR_PREPROCESSING)


def _layers_per_block(name: str, depth: int, step: int) -> int:
    layers, rest = divmod(depth - 4, step)
    if rest == 0 and layers >= 1:
        return layers
    fitting = [step * count + 4 for count in (layers, layers + 1) if count >= 1] or [step + 4]
    depths = " or ".join(map(str, fitting))
    raise UsageError(name, f"depth {depth} is not 4 + {step}·layers", f"the nearest depth that fits is {depths}")

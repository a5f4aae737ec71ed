"""Stems as numbers: what stands between the image and the first dense block.

Several of them have the same parameters and compute something else, so that weights alone do not tell them apart.

>>> STEM_TABLE["imagenet"].halvings, STEM_TABLE["cifar"].halvings
(2, 0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Stem:
    """One stem: `convolutions` of `kernel` x `kernel`, the first with `stride`; a norm and a ReLU follow each.

    Attributes:
        kernel: of every convolution.
        stride: of the first one; the others have stride 1.
        convolutions: how many there are. Those before the last make `growth_rate` channels.
        norm: whether norms and ReLUs follow.
        pool: `none`, `max` (3x3, stride 2), or `blur` (3x3 maximum of stride 1, then a binomial 3x3 filter of stride 2,
            https://arxiv.org/abs/1904.11486).
    """

    kernel: int
    stride: int = 1
    convolutions: int = 1
    norm: bool = True
    pool: str = "none"

    @property
    def halvings(self) -> int:
        """How often height and width are halved, rounding up."""
        return (self.stride == 2) + (self.pool != "none")

    @property
    def smallest_image_size(self) -> int:
        """The smallest image in pixels that passes: the blur mirrors a margin of one pixel, which needs a second."""
        return self.stride + 1 if self.pool == "blur" else 1

    def __str__(self) -> str:
        pools = {"none": "no pool", "max": "max pool 3x3/2", "blur": "max pool 3x3 and blur /2"}
        return f"conv0 stride {self.stride}, {pools[self.pool]}"


STEM_TABLE: Final[Mapping[str, Stem]] = {
    "imagenet": Stem(7, 2, pool="max"),
    "cifar": Stem(3, norm=False),
    "imagenet-nopool": Stem(7, 2),
    "3x3-pool": Stem(3, pool="max"),
    "3x3-nopool": Stem(3),
    "deep": Stem(3, 2, convolutions=3, pool="max"),
    "deep-blur": Stem(3, 2, convolutions=3, pool="blur"),
}
"""By name. Of stems with the same parameters, the first is assumed."""

STEMS: Final = tuple(STEM_TABLE)


def stems_like(name: str) -> tuple[str, ...]:
    """Return the other stems with the parameters of the stem `name`.

    >>> stems_like("imagenet"), stems_like("cifar")
    (('imagenet-nopool',), ())
    """
    shape = _shape(STEM_TABLE[name])
    return tuple(other for other, stem in STEM_TABLE.items() if other != name and _shape(stem) == shape)


def stem_of(kernel: int, convolutions: int, *, norm: bool) -> str | None:
    """Return the first stem with such parameters; None if none has them."""
    wanted = (kernel, convolutions, norm)
    return next((name for name, stem in STEM_TABLE.items() if _shape(stem) == wanted), None)


def _shape(stem: Stem) -> tuple[int, int, bool]:
    return stem.kernel, stem.convolutions, stem.norm

"""A DenseNet as numbers: everything that decides its shapes, and nothing that needs torch.

Architecture: "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993). Every layer of a block
appends `growth_rate` channels to what it reads; a transition keeps ⌊compression · channels⌋ of them and halves the
image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import SpecFacts
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.records import from_plain

STEMS: Final = ("imagenet", "cifar")
HEADS: Final = ("classifier", "features", "multiscale")
MOST_CLASSES: Final = 1_000_000
SCALE_CHANNELS: Final = 128
"""Channels to which the multiscale head reduces each block."""


@dataclass(frozen=True)
class DenseNetSpec:
    """The numbers of one DenseNet; the defaults are DenseNet-121.

    `bn_size` 0 means plain layers (BN, ReLU, conv3x3), otherwise a bottleneck of `bn_size * growth_rate` channels.

    >>> DenseNetSpec(blocks=(6, 12, 32, 32)).feature_channels
    1664

    Raises:
        UsageError: if a number is out of range, or the compression leaves a transition without channels.
    """

    growth_rate: int = 32
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    init_features: int = 64
    compression: float = 0.5
    bn_size: int = 4
    drop_rate: float = 0.0
    stem: str = "imagenet"
    num_classes: int = 1000
    head: str = "classifier"

    def __post_init__(self) -> None:
        require_range("growth-rate", self.growth_rate, 1, 1024)
        require_range("number of blocks", len(self.blocks), 1, 8)
        for layers in self.blocks:
            require_range("blocks", layers, 1, 512)
        require_range("init-features", self.init_features, 1, 8192)
        require_range("compression", self.compression, 0.01, 1.0)
        require_range("bn-size", self.bn_size, 0, 64)
        require_range("drop-rate", self.drop_rate, 0.0, 0.99)
        require_range("num-classes", self.num_classes, 1, MOST_CLASSES)
        require_choice("stem", self.stem, STEMS)
        require_choice("head", self.head, HEADS)
        if min(self.channels_in) < 1:
            raise UsageError(
                f"compression={self.compression}",
                f"leaves a transition without channels (blocks end with {self.channels_out})",
                "raise the compression or the growth rate",
            )

    @property
    def channels_in(self) -> tuple[int, ...]:
        """Channels entering each block."""
        return tuple(entering for entering, _ in self._widths())

    @property
    def channels_out(self) -> tuple[int, ...]:
        """Channels leaving each block, before its transition."""
        return tuple(leaving for _, leaving in self._widths())

    @property
    def feature_channels(self) -> int:
        """Channels after the last block."""
        return self.channels_out[-1]

    @property
    def output_name(self) -> str:
        """`features` or `logits`."""
        return "features" if self.head == "features" else "logits"

    @property
    def output_width(self) -> int:
        """Length of one output row."""
        return self.feature_channels if self.head == "features" else self.num_classes

    @property
    def smallest_image_size(self) -> int:
        """The smallest square image, in pixels, of which the last block still sees one.

        Each transition halves rounding down; the ImageNet stem halves twice rounding up.
        """
        before_first_block: int = 2 ** (len(self.blocks) - 1)
        return 4 * before_first_block - 3 if self.stem == "imagenet" else before_first_block

    def same_architecture(self, other: DenseNetSpec) -> bool:
        """Whether both have the same layers up to the head; dropout has no weights and does not count."""
        return self == dataclasses.replace(
            other, num_classes=self.num_classes, head=self.head, drop_rate=self.drop_rate
        )

    def to_facts(self) -> SpecFacts:
        """Return the numbers by name, as a manifest carries them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_facts(cls, facts: SpecFacts) -> DenseNetSpec:
        """Read the numbers back.

        Raises:
            ManifestError: if one is missing, unknown, of another type or out of range.
        """
        missing = next((field.name for field in dataclasses.fields(cls) if field.name not in facts), None)
        if missing is not None:
            raise _wrong_fact(f"spec.{missing}", "is missing")
        try:
            return from_plain(cls, facts, "spec", _wrong_fact, strict=True)
        except UsageError as exc:
            raise _wrong_fact(f"spec.{exc.subject}", exc.why) from exc

    def _widths(self) -> list[tuple[int, int]]:
        """(channels entering, channels leaving) of each block."""
        entering, widths = self.init_features, []
        for layers in self.blocks:
            leaving = entering + layers * self.growth_rate
            widths.append((entering, leaving))
            entering = compressed(leaving, self.compression)
        return widths


def compressed(channels: int, compression: float) -> int:
    """Return the channels that a transition keeps; rounded down, as torchvision does."""
    return int(channels * compression)


def _wrong_fact(where: str, why: str) -> ManifestError:
    return ManifestError(where, why, "export the model again")

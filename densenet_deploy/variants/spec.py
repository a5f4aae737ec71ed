"""A DenseNet as numbers: everything that decides its shapes, and nothing that needs torch.

Architecture: "Densely Connected Convolutional Networks" (https://arxiv.org/abs/1608.06993). Every layer of a block
appends `growth_rate` channels to what it reads; a transition keeps ⌊compression · channels⌋ of them and halves the
image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from densenet_deploy.errors import ManifestError, UsageError
from densenet_deploy.manifest import SpecFacts
from densenet_deploy.options import require_choice, require_range
from densenet_deploy.records import from_plain
from densenet_deploy.variants.hidden import hidden_layers, named_hidden_layers
from densenet_deploy.variants.stems import STEM_TABLE, STEMS, Stem

__all__ = [
    "HEADS",
    "MOST_CHANNELS",
    "MOST_CLASSES",
    "POOLINGS",
    "SCALE_CHANNELS",
    "STEMS",
    "DenseNetSpec",
    "compressed",
]

HEADS: Final = ("classifier", "features", "multiscale")
POOLINGS: Final = ("relu-avg", "avg", "max-avg")
"""How the last maps become a row: ReLU and mean; the mean alone; maxima and means side by side, without ReLU."""
MOST_CLASSES: Final = 1_000_000
MOST_CHANNELS: Final = 4096
MOST_BN_SIZE: Final = 64
SCALE_CHANNELS: Final = 128
"""Channels to which the multiscale head reduces each block."""


@dataclass(frozen=True)
class DenseNetSpec:
    """The numbers of one DenseNet; the defaults are DenseNet-121.

    >>> DenseNetSpec(blocks=(6, 12, 32, 32)).feature_channels
    1664

    Attributes:
        growth_rate: channels that each layer adds.
        blocks: layers in each block.
        init_features: channels after the stem.
        compression: fraction of the channels that a transition keeps.
        bn_size: 0 means plain layers (BN, ReLU, conv3x3), otherwise a bottleneck of `bn_size * growth_rate` channels.
        drop_rate: fraction of features dropped in training.
        stem: an entry of `STEM_TABLE`.
        num_classes: outputs of the last linear layer.
        head: `classifier`, `features` or `multiscale`.
        in_channels: channels of the images.
        pooling: one of `POOLINGS`.
        hidden: the layers between the pooled features and the last linear layer, as `variants.hidden` writes them.
        bias: whether the last linear layer has one.
        bottlenecks: after pruning, where layers may differ, the channels of each, block after block; `bn_size` is then
            the smallest that is wide enough for all of them (see `with_bottlenecks`).

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
    in_channels: int = 3
    pooling: str = "relu-avg"
    hidden: str = ""
    bias: bool = True
    bottlenecks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_range("growth-rate", self.growth_rate, 1, 1024)
        require_range("number of blocks", len(self.blocks), 1, 8)
        for layers in self.blocks:
            require_range("blocks", layers, 1, 512)
        require_range("init-features", self.init_features, 1, 8192)
        require_range("compression", self.compression, 0.01, 1.0)
        require_range("bn-size", self.bn_size, 0, MOST_BN_SIZE)
        self._check_bottlenecks()
        require_range("drop-rate", self.drop_rate, 0.0, 0.99)
        require_range("num-classes", self.num_classes, 1, MOST_CLASSES)
        require_choice("stem", self.stem, STEMS)
        require_choice("head", self.head, HEADS)
        require_range("channels", self.in_channels, 1, MOST_CHANNELS)
        require_choice("pooling", self.pooling, POOLINGS)
        hidden_layers(self.hidden)
        if self.head == "multiscale" and (self.hidden or self.pooling != "relu-avg"):
            raise UsageError("head=multiscale", "has a pooling of its own and no hidden layers", "leave them out")
        if min(self.channels_in) < 1:
            raise UsageError(
                f"compression={self.compression}",
                f"leaves a transition without channels (blocks end with {self.channels_out})",
                "raise the compression or the growth rate",
            )

    def _check_bottlenecks(self) -> None:
        if not self.bottlenecks:
            return
        require_range("number of bottlenecks", len(self.bottlenecks), sum(self.blocks), sum(self.blocks))
        for width in self.bottlenecks:
            require_range("bottlenecks", width, 1, MOST_BN_SIZE * self.growth_rate)
        if (self.bn_size, self.bottlenecks) != _canonical(self.bottlenecks, self.growth_rate):
            why = f"does not go with bottlenecks of {min(self.bottlenecks)} to {max(self.bottlenecks)} channels"
            raise UsageError(f"bn-size={self.bn_size}", why, "leave out one of them")

    @property
    def bottleneck_widths(self) -> tuple[tuple[int, ...], ...]:
        """Channels of the bottleneck of each layer, by block; 0 of a plain layer."""
        widths = self.bottlenecks or (self.bn_size * self.growth_rate,) * sum(self.blocks)
        starts = [sum(self.blocks[:index]) for index in range(len(self.blocks))]
        return tuple(widths[start : start + layers] for start, layers in zip(starts, self.blocks, strict=True))

    def with_bottlenecks(self, widths: Sequence[int]) -> DenseNetSpec:
        """Return the spec whose layers, block after block, have bottlenecks of `widths` channels.

        >>> DenseNetSpec(blocks=(1, 1)).with_bottlenecks([96, 96]).bn_size
        3

        Raises:
            UsageError: if there are not as many as layers, or one is out of range.
        """
        bn_size, bottlenecks = _canonical(tuple(widths), self.growth_rate)
        return dataclasses.replace(self, bn_size=bn_size, bottlenecks=bottlenecks)

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
    def stem_layers(self) -> Stem:
        """The stem as numbers."""
        return STEM_TABLE[self.stem]

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Channels that each convolution of the stem makes."""
        return (*(self.growth_rate,) * (self.stem_layers.convolutions - 1), self.init_features)

    @property
    def pooled_width(self) -> int:
        """Length of the row that the pool makes of the last maps."""
        return self.feature_channels * (2 if self.pooling == "max-avg" else 1)

    @property
    def row_width(self) -> int:
        """Length of the row that the last linear layer reads, behind the hidden layers."""
        if self.head == "multiscale":
            return SCALE_CHANNELS * len(self.blocks)
        named = named_hidden_layers(self.hidden, self.pooled_width)
        return next((layer.width for _, layer, _ in reversed(named) if layer.width), self.pooled_width)

    @property
    def output_name(self) -> str:
        """`features` or `logits`."""
        return "features" if self.head == "features" else "logits"

    @property
    def output_width(self) -> int:
        """Length of one output row."""
        return self.row_width if self.head == "features" else self.num_classes

    @property
    def smallest_image_size(self) -> int:
        """The smallest square image, in pixels, of which the last block still sees one.

        Each transition halves rounding down; the stem halves rounding up.
        """
        before_first_block: int = 2 ** (len(self.blocks) - 1)
        stem = self.stem_layers
        halved: int = 2**stem.halvings
        return max(halved * (before_first_block - 1) + 1, stem.smallest_image_size)

    def same_architecture(self, other: DenseNetSpec) -> bool:
        """Whether both have the same layers between image and head; dropout has no weights and does not count."""
        return self == other.with_ends_of(self, drop_rate=self.drop_rate)

    def with_ends_of(self, other: DenseNetSpec, **changes: Any) -> DenseNetSpec:
        """Return the spec with the input channels and the head of `other`, and with `changes`."""
        ends = {name: getattr(other, name) for name in _ENDS}
        return dataclasses.replace(self, **(ends | changes))

    def to_facts(self) -> SpecFacts:
        """Return the numbers by name, as a manifest carries them."""
        facts = dataclasses.asdict(self)
        if not self.bottlenecks:
            del facts["bottlenecks"]
        return facts

    @classmethod
    def from_facts(cls, facts: SpecFacts) -> DenseNetSpec:
        """Read the numbers back; those that older files do not state have their defaults.

        Raises:
            ManifestError: if one is missing, unknown, of another type or out of range.
        """
        missing = next((name for name in _ALWAYS_WRITTEN if name not in facts), None)
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


_ENDS: Final = ("in_channels", "num_classes", "head", "pooling", "hidden", "bias")
_ALWAYS_WRITTEN: Final = (
    *("growth_rate", "blocks", "init_features", "compression", "bn_size", "drop_rate", "stem", "num_classes", "head"),
)


def _canonical(widths: tuple[int, ...], growth_rate: int) -> tuple[int, tuple[int, ...]]:
    """(bn_size, bottlenecks) of layers with these widths: one spec for one network."""
    bn_size = -(-max(widths) // growth_rate)
    return bn_size, () if set(widths) == {bn_size * growth_rate} else widths


def compressed(channels: int, compression: float) -> int:
    """Return the channels that a transition keeps; rounded down, as torchvision does."""
    return int(channels * compression)


def _wrong_fact(where: str, why: str) -> ManifestError:
    return ManifestError(where, why, "export the model again")

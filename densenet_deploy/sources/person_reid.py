"""Person_reID_baseline_pytorch: a `ClassBlock` of Linear, BatchNorm, Dropout and Linear, without a ReLU anywhere.

Its DenseNet pools what leaves the last norm. torchvision's own classifier stays in the file, and is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from densenet_deploy.sources.heads import HeadConventions
from densenet_deploy.sources.source import CheckpointFormat, formats


@formats.register("person-reid")
class PersonReidFormat(CheckpointFormat):
    """`classifier.add_block.0`, `classifier.add_block.1` and `classifier.classifier.0`."""

    head: ClassVar[HeadConventions] = HeadConventions(pooling="avg", relus=False)

    def recognises(self, names: Collection[str]) -> bool:
        return "classifier.add_block.0.weight" in names

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:
        return {name: None for name in names if name in ("classifier.weight", "classifier.bias")}

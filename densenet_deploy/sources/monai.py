"""MONAI's DenseNets for 2-D images: a dense layer holds its layers in `layers`, the head is `class_layers`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.source import CheckpointFormat, formats

if TYPE_CHECKING:
    from torch import Tensor

_LAYER: Final = re.compile(r"(denselayer\d+\.)layers\.")
_HEAD: Final = "class_layers.out."


@formats.register("monai")
class MonaiFormat(CheckpointFormat):
    """`features.denseblock1.denselayer1.layers.norm1` and `class_layers.out`."""

    def recognises(self, names: Collection[str]) -> bool:
        return any(_LAYER.search(name) for name in names)

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:
        plain = {name: _LAYER.sub(r"\1", name) for name in names}
        return plain | {name: f"classifier.{name.removeprefix(_HEAD)}" for name in names if name.startswith(_HEAD)}

    def notes(self, tensors: Mapping[str, Tensor | Array]) -> tuple[str, ...]:  # noqa: ARG002 - they hold for all
        return (
            "MONAI resizes by averages of whole pixels, here by a filter: outputs differ (33.1 dB)",
            "MONAI's reader of images swaps height and width unless told otherwise, which is not done here",
        )

"""TorchXRayVision's DenseNets: one channel of values in -1024...1024, and a threshold for each finding.

Its own code puts the probabilities p = sigmoid(logit) on a scale on which each threshold t is 0.5: p / 2t below t, and
1 - (1 - p) / 2(1 - t) above. Our network gives the logits, the task is multilabel, and probability and threshold stay
apart, so that the same findings are positive. A threshold that is not a number marks a finding that was not trained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.source import CheckpointFormat, formats

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS: Final = "op_threshs"
FINDINGS: Final = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion"),
    *("Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture"),
    *("Lung Opacity", "Enlarged Cardiomediastinum"),
)
"""The library's order of outputs."""

_SIZE: Final = 224
_NEVER: Final = 1.0  # no sigmoid is above it


@formats.register("torchxrayvision")
class TorchXRayVisionFormat(CheckpointFormat):
    """A state dict of the library's DenseNet with the buffer `op_threshs`."""

    reads: ClassVar[tuple[str, ...]] = (THRESHOLDS,)

    def recognises(self, names: Collection[str]) -> bool:
        return THRESHOLDS in names

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:  # noqa: ARG002 - the rest is torchvision's
        return {THRESHOLDS: None}

    def facts(self, tensors: Mapping[str, Tensor | Array]) -> ModelFacts:
        thresholds = thresholds_of(tensors)
        return ModelFacts(
            image_size=_SIZE,
            resize=_SIZE,
            mean=0.5,  # type: ignore[arg-type]
            std=1 / 2048,  # type: ignore[arg-type]
            labels=FINDINGS if len(thresholds) == len(FINDINGS) else None,
            task="multilabel",
            thresholds=tuple(_NEVER if math.isnan(value) else value for value in thresholds),
        )

    def notes(self, tensors: Mapping[str, Tensor | Array]) -> tuple[str, ...]:
        thresholds = thresholds_of(tensors)
        untrained = sum(map(math.isnan, thresholds))
        notes = (
            "TorchXRayVision: the outputs are logits; its thresholds apply to their sigmoids, which it would rescale",
            "TorchXRayVision crops the middle square before it resizes, not after it as here: outputs differ (19.8 dB)",
        )
        if not untrained:
            return notes
        return *notes, f"{untrained} of {len(thresholds)} outputs have no threshold, which marks them as untrained"

    def library_output(self, outputs: Tensor, tensors: Mapping[str, Tensor | Array]) -> Tensor:
        import torch

        thresholds, scores = torch.as_tensor(tensors[THRESHOLDS]).to(outputs), torch.sigmoid(outputs)
        below, above = scores / (2 * thresholds), 1 - (1 - scores) / (2 * (1 - thresholds))
        return torch.where(scores < thresholds, below, above).where(~thresholds.isnan(), 0.5)


def thresholds_of(tensors: Mapping[str, Tensor | Array]) -> tuple[float, ...]:
    """Return the thresholds of the buffer; NaN where there is none."""
    return tuple(float(value) for value in tensors[THRESHOLDS].flatten().tolist())

"""CheXNet and its many copies: torchvision's DenseNet with `classifier = Sequential(Linear, Sigmoid)` for 14 findings.

The Sigmoid has no weights, and a `Sequential` around a single linear layer would be pointless without one. Our network
gives the logits; the task says that a sigmoid turns each into a probability.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from densenet_deploy.facts import ModelFacts
from densenet_deploy.sources.arrays import Array
from densenet_deploy.sources.source import CheckpointFormat, formats

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT: Final = "classifier.0.weight"
_BIAS: Final = "classifier.0.bias"
_FINDINGS: Final = 14  # of ChestX-ray14


@formats.register("chexnet")
class ChexnetFormat(CheckpointFormat):
    """A classifier that is the first layer of a `Sequential`, and the only one with weights."""

    def recognises(self, names: Collection[str]) -> bool:
        head = {name for name in names if not name.startswith("features.")}
        return _WEIGHT in head and not any(name.startswith("classifier.") for name in head - {_WEIGHT, _BIAS})

    def renames(self, names: Collection[str]) -> Mapping[str, str | None]:  # noqa: ARG002 - every linear layer is read
        return {}

    def facts(self, tensors: Mapping[str, Tensor | Array]) -> ModelFacts:
        return ModelFacts(task="multilabel") if _is_of_findings(tensors) else ModelFacts()

    def notes(self, tensors: Mapping[str, Tensor | Array]) -> tuple[str, ...]:
        if not _is_of_findings(tensors):
            return ()
        return ("a Sequential classifier of 14 outputs, as CheXNet's: multilabel, a sigmoid is applied to each logit",)


def _is_of_findings(tensors: Mapping[str, Tensor | Array]) -> bool:
    return tensors[_WEIGHT].shape[0] == _FINDINGS

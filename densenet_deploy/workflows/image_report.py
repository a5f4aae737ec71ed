"""What reports say about the images that a model answered: how they were prepared, and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from densenet_deploy.manifest import Manifest
from densenet_deploy.model import InputDescription, untrained_note
from densenet_deploy.reports import Report
from densenet_deploy.runtime.classifier import Classifier
from densenet_deploy.workflows.load import INPUT_FACTS

_FAST: Final = "images were decoded fast: JPEGs at a reduced scale, large images averaged over blocks; not exact"


@dataclass(frozen=True, kw_only=True)
class RanReport(Report):
    """What a model answered images with: the fields of a `Placement`, and how images were prepared."""

    backend: str
    version: str
    device: str
    provider: str
    precision: str
    threads: int
    input: InputDescription

    @property
    def ran(self) -> str:
        """What ran the model, but for the threads."""
        return f"{self.backend} {self.version}, {self.provider}, {self.device}, {self.precision}"


def described_input(classifier: Classifier, manifest: Manifest | None) -> InputDescription:
    """Return how images were prepared, and which of these facts nobody stated: all of a model without a manifest."""
    assumed = manifest.assumed if manifest is not None else INPUT_FACTS
    return InputDescription.of(classifier.preprocessing, assumed, fast_decode=classifier.fast)


def remarks(classifier: Classifier, manifest: Manifest | None, of_model: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return `of_model` and what else is worth knowing: no training, assumptions, images that were decoded fast."""
    return (*of_model, *untrained_note(manifest), *classifier.assumptions, *((_FAST,) if classifier.fast else ()))

"""Classify image files with any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densenet_deploy.errors import UsageError, printable
from densenet_deploy.runtime.classifier import Classifier, Prediction
from densenet_deploy.runtime.runner import Placement, RunnerOptions
from densenet_deploy.workflows.load import open_model
from densenet_deploy.workflows.notes import untrained_note


@dataclass(frozen=True)
class ClassifyReport:
    """A prediction for every file, and what ran it."""

    predictions: tuple[tuple[Path, Prediction], ...]
    placement: Placement
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "predictions": [
                {
                    "file": str(path),
                    "top": [{"index": s.index, "label": s.label, "score": s.score} for s in prediction.top],
                }
                for path, prediction in self.predictions
            ],
            "backend": self.placement.backend,
            "device": self.placement.device,
            "provider": self.placement.provider,
            "precision": self.placement.precision,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return lines for people."""
        blocks = [f"{printable(path)}\n{prediction}" for path, prediction in self.predictions]
        return "\n".join([*blocks, f"({self.placement})"])


def classify_files(
    model: Path,
    images: Sequence[Path],
    *,
    top_k: int = 5,
    backend: str | None = None,
    device: str | None = None,
    options: RunnerOptions | None = None,
) -> ClassifyReport:
    """Return the `top_k` best classes of every image.

    Raises:
        ImageError: if an image cannot be read.
        InputError: if the model cannot be used.
        BackendError: if the backend or device cannot be had.
    """
    if top_k < 1:
        raise UsageError(f"top-k={top_k}", "is out of range", "ask for at least 1 class")
    with open_model(model, backend, device, options) as runner:
        classifier = Classifier(runner)
        predictions = tuple((path, classifier.classify(path, top_k)) for path in images)
        remarks = (f"{path}: {note}" for path, prediction in predictions for note in prediction.notes)
        notes = (*untrained_note(runner.manifest), *classifier.assumptions, *remarks)
        return ClassifyReport(predictions, runner.placement, notes)

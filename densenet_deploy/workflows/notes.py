"""Remarks that several workflows make."""

from __future__ import annotations

from densenet_deploy.manifest import Manifest


def untrained_note(manifest: Manifest | None) -> tuple[str, ...]:
    """Return the line that every workflow reports for an untrained model, or nothing."""
    if manifest is None or manifest.weights.is_trained:
        return ()
    return (f"untrained weights (random, seed {manifest.weights.seed}): predictions are meaningless",)

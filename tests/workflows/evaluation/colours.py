"""A runner whose outputs are the colours of an image: exact answers of every task, for images of one colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densenet_deploy.manifest import THIRD_PARTY, Manifest, Preprocessing, WeightsOrigin
from tests.function_runner import FunctionRunner

PLAIN = Preprocessing(8, "none", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
COLOURS = ("red", "green", "blue")


def colours(batch: np.ndarray, outputs: int = 3) -> dict[str, np.ndarray]:
    """Red, green and blue of every image, 0 to 255."""
    return {"logits": np.round(batch.mean(axis=(2, 3)) * 255)[:, :outputs].astype(np.float32)}


def runner(
    task: str | None = "multilabel",
    labels: tuple[str, ...] = COLOURS,
    *,
    scale: float = 1.0,
    shift: float = -128.0,
    outputs: int = 3,
    is_ours: bool = True,
    shown: int | None = 3,
    **facts: Any,
) -> FunctionRunner:
    """Return a model whose logits are the colours plus `shift`, times `scale`."""
    origin = WeightsOrigin("colours", "0" * 64)
    manifest = Manifest("121" if is_ours else THIRD_PARTY, {}, origin, PLAIN, labels=labels, task=task, **facts)

    def answer(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": (colours(batch, outputs)["logits"] + shift) * np.float32(scale)}

    shape = {"logits": (None, None if shown is None else min(shown, outputs))}
    return FunctionRunner(answer, outputs=shape, manifest=manifest)


def painted(folder: Path, images: Mapping[str, tuple[int, int, int]]) -> Path:
    """Write images of one colour each."""
    for name, colour in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
    return folder

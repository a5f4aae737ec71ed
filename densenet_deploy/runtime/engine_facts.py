"""What both a build and a sidecar say of an engine: words, tensors and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HARDWARE_LEVELS: Final = ("none", "ampere-plus", "same-compute-capability")
PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class TensorFacts:
    """Name, numpy type (`float32`) and shape of an input or output; a dimension of None is the profile's."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class BatchProfile:
    """The batches that one profile of an engine takes, and the one it was tuned for."""

    min: int = 1
    opt: int = 1
    max: int = 1

"""Where a training stands, in one file that is replaced whole after every epoch.

It holds all that a resumed run needs, so that a run that is killed loses at most the epoch it was in. Files made from
it (weights, metrics, curves) can always be written again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from densenet_deploy.artifacts import write_file
from densenet_deploy.errors import DataError, UsageError
from densenet_deploy.sources.checkpoint_file import read_checkpoint

_FORMAT: Final = 1
_FIX: Final = "choose another -o, or begin anew with --force"


@dataclass
class TrainingState:
    """Where a training stands.

    Attributes:
        facts: what decides its result, as text by name; a resumed run must have the same.
        machine: device and threads, on which the last bits depend.
        epochs: how many are done.
        trainer: see `Trainer.state`.
        best: the weights of the best epoch.
        best_epoch: its number, from 1; 0 before the first.
        records: the metrics of every epoch.
    """

    facts: dict[str, str]
    machine: str = ""
    epochs: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write it to `path`, whole or not at all.

        Raises:
            ResourceError: if the disk is full, read-only or not permitted.
        """
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, **vars(self)}, buffer)
        write_file(path, buffer.getbuffer())

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Read the file that `write` wrote.

        Raises:
            CheckpointError: if it is damaged, or holds something else than tensors, numbers and containers.
            DataError: if it is not such a file.
        """
        content = _tensors(read_checkpoint(path).content)
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise DataError(path, "is not the state of a training of this version", _FIX)
        return cls(**content)

    def require_same(self, facts: Mapping[str, str], path: Path) -> None:
        """Check that a run with `facts` would go on with this one.

        Raises:
            UsageError: naming the first that differs.
        """
        for name in {**self.facts, **facts}:
            then, now = self.facts.get(name, "nothing"), facts.get(name, "nothing")
            if then != now:
                subject = name.replace("_", "-")
                why = f"is {now}, but the training in {path.parent} began with {then}"
                raise UsageError(subject, why, f"resume with the same options and data; or {_FIX}")


def _tensors(content: object) -> Any:
    """Return `content` with tensors, which may be changed, in place of arrays."""
    if isinstance(content, np.ndarray):
        return torch.from_numpy(content.copy())
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(_tensors, content))
    return content

"""The zip around PyTorch's checkpoints, judged by its directory: nothing is inflated, and PyTorch is not needed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

from densenet_deploy.errors import CheckpointError

INFLATION_LIMIT: Final = 4
"""How many times its own size a checkpoint may unpack to."""

SAVE_STATE: Final = "save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
FETCH_AGAIN: Final = "download or save it again"


def require_weights_zip(path: Path, file: BinaryIO) -> None:
    """Check the zip in `file`, which `path` names in errors.

    Raises:
        CheckpointError: if it is damaged, would unpack to far more than it is, or holds a program.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise CheckpointError(path, f"is a damaged or cut-off zip ({exc})", FETCH_AGAIN) from exc
    declared = sum(entry.file_size for entry in entries)
    if declared > INFLATION_LIMIT * size_bytes:
        raise CheckpointError(
            path,
            f"would unpack to {declared} bytes, over {INFLATION_LIMIT} times its {size_bytes}",
            "do not use it; get the checkpoint from its author",
        )
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(path, "is a TorchScript program, not weights", SAVE_STATE)

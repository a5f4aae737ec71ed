"""Files that are expensive to make: made once for all processes of a test run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

FOLDER: Final = "DENSENET_DEPLOY_MADE_ONCE"
"""Environment variable with the folder of these files; `conftest.py` sets it for one run."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder `name`, which `make` fills in the process that asks first. Its files are not to be changed."""
    root = Path(os.environ[FOLDER])
    folder, done = root / name, root / f"{name}.done"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder

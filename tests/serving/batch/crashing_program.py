"""The process of a worker, for images that crash it: the name of one says how."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densenet_deploy.serving.batch import shard_worker
from densenet_deploy.workflows import batch

_read = shard_worker.read_named_image


def _read_or_crash(name: str, **options: Any) -> Any:
    stem = Path(name).stem
    if stem.startswith("crash"):
        time.sleep(0.05)  # threads that read ahead answer first
        os.kill(os.getpid(), signal.SIGSEGV)
    if stem.startswith("memory"):
        raise MemoryError
    if stem.startswith("bug"):
        raise KeyError(name)
    if stem.startswith("once") and not Path(f"{name}.seen").exists():
        Path(f"{name}.seen").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _read(name, **options)


def main(requests: Iterator[Any]) -> Iterator[Any]:
    shard_worker.read_named_image = _read_or_crash
    return batch.main(requests)

"""A stand-in of a few bytes for onnxruntime-web, where no page is opened."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from densenet_deploy.serving.web import runtime_files
from densenet_deploy.serving.web.runtime_files import BINARY, SCRIPT, PinnedFile

RUNTIME = {SCRIPT: b"export {};", BINARY: b"\0asm"}


def write_small_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write it into a new folder, and let it be the one that is pinned."""
    pinned = {name: PinnedFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in RUNTIME.items()}
    monkeypatch.setattr(runtime_files, "FILES", pinned)
    folder.mkdir()
    for name, data in RUNTIME.items():
        (folder / name).write_bytes(data)

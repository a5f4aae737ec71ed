"""Plans that no TensorRT wrote: a header as both flavours write it, and bytes behind it."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from densenet_deploy.artifacts import sync, written_beside
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.engine_files import place_engine, sniff
from densenet_deploy.runtime.sidecar import Sidecar, TensorFacts

DEFAULT_TARGETS = 0x7E  # what TensorRT-RTX 1.7.1 writes when no target is named


def plan_bytes(
    magic: bytes = b"vtrt",
    version: tuple[int, ...] = (1, 7, 1, 116),
    mask: int = DEFAULT_TARGETS,
    body: bytes = b"code",
) -> bytes:
    size = 36 + len(body)
    return struct.pack("<4sIQQ4B4sI", magic, 0, 2, size, *version, magic, mask) + body


def sidecar_of(plan: bytes, **changes: Any) -> Sidecar:
    header = sniff(plan)
    assert header is not None
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(plan).hexdigest(),
        "size": len(plan),
        "flavour": header.flavour,
        "version": header.version,
        "targets": header.targets or ("8.7",),
        "precision": "fp16",
        "onnx_sha256": "0" * 64,
        "inputs": (TensorFacts("input", "float32", (None, 3, 32, 32)),),
        "outputs": (TensorFacts("logits", "float32", (None, 10)),),
        "profiles": (BatchProfile(1, 2, 4),),
        "platform": "linux-x86_64",
    }
    return Sidecar(**{**facts, **changes})


def write_engine(path: Path, plan: bytes, sidecar: Sidecar) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(plan)
        sync(temporary)
        place_engine(temporary, path, sidecar)

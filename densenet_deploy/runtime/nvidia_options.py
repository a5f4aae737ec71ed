"""How to run on an NVIDIA GPU: shared by the TensorRT backends and ONNX Runtime's NVIDIA providers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.options import require_choice, require_range

PROVIDERS: Final = ("cuda", "tensorrt", "rtx")
_MOST_STREAMS: Final = 64


@dataclass(frozen=True)
class NvidiaOptions:
    """Choices that only an NVIDIA GPU has.

    Attributes:
        provider: what ONNX Runtime runs a model with: `cuda`, `tensorrt` or `rtx`. TensorRT plans know theirs.
        streams: most batches under way at once; each has its own stream and memory on the GPU. More callers wait.
        graphs: record the work of a batch as a CUDA graph and launch it as a whole, where the backend can.
        cache: folder of what is compiled for this GPU; None: `densenet-deploy/gpu` in the user's cache folder.
        allow_cpu_nodes: let ONNX Runtime put the nodes on the CPU that its provider cannot run.
    """

    provider: str = "cuda"
    streams: int = 2
    graphs: bool = True
    cache: Path | None = None
    allow_cpu_nodes: bool = False

    def __post_init__(self) -> None:
        require_choice("provider", self.provider, PROVIDERS)
        require_range("streams", self.streams, 1, _MOST_STREAMS)

    @property
    def cache_folder(self) -> Path:
        """The folder of what is compiled for this GPU; it need not exist."""
        if self.cache is not None:
            return self.cache
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "densenet-deploy" / "gpu"

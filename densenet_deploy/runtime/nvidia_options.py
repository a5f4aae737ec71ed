"""How to run on an NVIDIA GPU: shared by the TensorRT backends and ONNX Runtime's NVIDIA providers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range

PROVIDERS: Final = ("cuda", "tensorrt", "rtx")
_MOST_STREAMS: Final = 64


@dataclass(frozen=True)
class NvidiaOptions:
    """Choices that only an NVIDIA GPU has.

    Attributes:
        provider: what ONNX Runtime runs a model with: `cuda` (also what None means), `tensorrt` or `rtx`. Naming one
            asks for the GPU: nothing else is then taken instead.
        streams: most batches under way at once; each has its own stream and memory on the GPU. More callers wait.
        graphs: record the work of a batch as a CUDA graph and launch it as a whole. None: TensorRT plans yes where they
            can, ONNX Runtime no.
        cache: folder of what is compiled for this GPU; None: `densenet-deploy/gpu` in the user's cache folder.
        allow_cpu_nodes: let ONNX Runtime put the nodes on the CPU that its provider cannot run.
        batches: smallest, usual and largest batch that ONNX Runtime's TensorRT providers build for; None leaves it to
            them, and they build anew when a larger one comes.
    """

    provider: str | None = None
    streams: int = 2
    graphs: bool | None = None
    cache: Path | None = None
    allow_cpu_nodes: bool = False
    batches: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.provider is not None:
            require_choice("provider", self.provider, PROVIDERS)
        require_range("streams", self.streams, 1, _MOST_STREAMS)
        if self.batches is not None and not 1 <= self.batches[0] <= self.batches[1] <= self.batches[2]:
            raise UsageError(f"batches={self.batches}", "are not smallest, usual, largest", "give them in that order")

    @property
    def cache_folder(self) -> Path:
        """The folder of what is compiled for this GPU; it need not exist."""
        if self.cache is not None:
            return self.cache
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "densenet-deploy" / "gpu"

"""NVIDIA GPUs: which ones the driver shows, and the options that only they have.

The driver is asked directly, without CUDA's runtime, TensorRT, or a context on any of the GPUs. TensorRT and ONNX
Runtime share the options.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import cache_folder
from densenet_deploy.errors import UsageError
from densenet_deploy.options import require_choice, require_range

PROVIDERS: Final = ("cuda", "tensorrt", "rtx")
_MOST_STREAMS: Final = 64
_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


@dataclass(frozen=True)
class NvidiaOptions:
    """Options that only an NVIDIA GPU has.

    Attributes:
        provider: what ONNX Runtime runs a model with: `cuda` (the default), `tensorrt` or `rtx`. Naming one asks for
            the GPU: it is not replaced by anything else.
        streams: the largest number of batches in progress; each has its own stream and GPU memory. More callers wait.
        graphs: record the work of a batch as a CUDA graph and launch it as a whole. None: TensorRT engines do so if
            they can, ONNX Runtime does not.
        cache: folder for what is compiled for this GPU; None: `densenet-deploy/gpu` in the user's cache folder.
        allow_cpu_nodes: let ONNX Runtime run nodes on the CPU that its provider does not support.
        batches: smallest, usual and largest batch that ONNX Runtime's TensorRT providers build for; None leaves it to
            them, and they build again for a larger one.
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
            raise UsageError(f"batches={self.batches}", "is not smallest, usual, largest", "give them in that order")

    @property
    def cache_folder(self) -> Path:
        """The folder for what is compiled for this GPU; it may not exist yet."""
        return self.cache or cache_folder("gpu")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    The CUDA driver reports the first three; `nvidia-smi` also the rest, which are None if it does not.

    Attributes:
        index: its position among the visible GPUs.
        compute_capability: `8.6`, for example.
        clock_mhz, highest_clock_mhz: of the multiprocessors, now and at most.
        persistent: whether the driver stays loaded between runs.
    """

    index: int
    name: str
    compute_capability: str
    driver: str | None = None
    memory_bytes: int | None = None
    clock_mhz: float | None = None
    highest_clock_mhz: float | None = None
    temperature_celsius: float | None = None
    persistent: bool | None = None


@functools.cache
def find_gpus() -> tuple[Gpu, ...]:
    """Return the visible GPUs, in CUDA's order; none without a driver that answers."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpus(driver, count.value))


def _gpus(driver: ctypes.CDLL, count: int) -> Iterator[Gpu]:
    for index in range(count):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        yield Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}")

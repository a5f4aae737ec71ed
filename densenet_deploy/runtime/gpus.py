"""Which NVIDIA GPUs the driver shows, asked without CUDA, TensorRT or a context on any of them."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CUdevice_attribute: compute capability


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
    """Return the visible GPUs, in CUDA's order; none where there is no driver or it does not answer."""
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

"""The NVIDIA driver's library, of a machine with two GPUs."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

DRIVER: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class FakeDriver:
    """What `ctypes.CDLL(DRIVER)` gives; `init` and `count_status` are what the first calls return."""

    NAMES = (b"First GPU", b"Second \xb0" + b"x" * 400)
    CAPABILITIES = ({75: 8, 76: 6}, {75: 12, 76: 1})

    def __init__(self, init: int = 0, count_status: int = 0) -> None:
        self._init, self._count_status = init, count_status
        self._ready = False

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        assert flags == 0
        self._ready = self._init == 0
        return self._init

    def cuDeviceGetCount(self, count) -> int:  # noqa: N802
        count._obj.value = 2
        return self._count_status if self._ready else 3

    def cuDeviceGet(self, device, index: int) -> int:  # noqa: N802
        device._obj.value = 40 + index  # a handle need not be the index
        return 0

    def cuDeviceGetName(self, name, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = self.NAMES[device.value - 40][: length - 1]
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = self.CAPABILITIES[device.value - 40][attribute]
        return 0

"""Per-channel ranges as the equalizing passes take them, and when they cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Ranges = Mapping[str, npt.NDArray[np.floating[Any]]]
"""By tensor name, the largest absolute value that calibration saw in each channel, (C,)."""

_FLOOR: Final = 1e-3


def why_no_range(ranges: Ranges, name: str, channels: int) -> str | None:
    """Say why `ranges` do not tell the range of the tensor `name` of that many channels, or None if they do."""
    if name not in ranges:
        return f"no range of {name} is given"
    given = ranges[name]
    if given.shape != (channels,):
        return f"the range of {name} has the shape {given.shape}, not ({channels},)"
    return None if np.isfinite(given).all() and (given >= 0).all() else f"the range of {name} is no finite size"


def floored(sizes: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return `sizes`, (C,), raised to at least 10⁻³ of the largest, so that a dead channel is no division by zero."""
    exact = np.asarray(sizes, np.float64)
    return np.asarray(np.maximum(exact, _FLOOR * exact.max()))

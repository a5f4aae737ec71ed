"""What the operators of a loaded model took, in the words of the backend that ran them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

WARM_UP_CALLS: Final = 2

_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class OperatorTime:
    """One operator as a backend reports it.

    Attributes:
        name: the node, or for PyTorch the module, that it belongs to; optimizers rename and merge nodes.
        operator: the kind of work, in the backend's word for it.
        provider: what ran it: an execution provider or a device.
        precision: the type it computed in: fp32, fp16, bf16 or int8; unknown where the backend does not say.
        ms: milliseconds in one call, the operators that it calls itself left out.
    """

    name: str
    operator: str
    provider: str
    precision: str
    ms: float


def median_times(calls: Sequence[Iterable[OperatorTime]]) -> tuple[OperatorTime, ...]:
    """Return each operator once, with the median of its times in `calls`, in the order of first appearance.

    Entries of one call that differ in nothing but time are added up first. The median, because a busy machine stops
    now this operator and now that one for milliseconds.

    >>> calls = [[OperatorTime("conv0", "Conv", "CPU", "fp32", ms)] for ms in (1.0, 1.2, 30.0)]
    >>> median_times(calls)[0].ms
    1.2
    """
    times: dict[_Key, list[float]] = defaultdict(lambda: [0.0] * len(calls))
    for number, call in enumerate(calls):
        for entry in call:
            times[entry.name, entry.operator, entry.provider, entry.precision][number] += entry.ms
    return tuple(OperatorTime(*key, ms=statistics.median(taken)) for key, taken in times.items())

"""Limits on a comparison: how they are written, which hold by default, and how a missed one is reported."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from densenet_deploy.errors import UnknownNameError, UsageError
from densenet_deploy.options import require_range
from densenet_deploy.parity.compare import Parity


@dataclass(frozen=True)
class _Metric:
    """Which side of a limit passes, and which limits are valid."""

    at_least: bool
    low: float
    high: float


_ERROR: Final = _Metric(at_least=False, low=0.0, high=sys.float_info.max)
_DECIBELS: Final = _Metric(at_least=True, low=-sys.float_info.max, high=sys.float_info.max)
_FRACTION: Final = _Metric(at_least=True, low=0.0, high=1.0)
_METRICS: Final[Mapping[str, _Metric]] = {
    "max_abs": _ERROR,
    "mean_abs": _ERROR,
    "max_rel": _ERROR,
    "mean_rel": _ERROR,
    "cosine": _Metric(at_least=True, low=-1.0, high=1.0),
    "sqnr_db": _DECIBELS,
    "centred_sqnr_db": _DECIBELS,
    "top1_agreement": _FRACTION,
    "top5_agreement": _FRACTION,
}


@dataclass(frozen=True)
class Gate:
    """A limit on one metric: cosine, SQNR and agreements must reach it, errors must not exceed it.

    >>> print(Gate("sqnr_db", 40.0))
    at least 40

    Attributes:
        metric: a number of `Parity`, such as `cosine`, `sqnr_db` or `max_abs`.
        limit: of that number.

    Raises:
        UnknownNameError: if the metric is unknown.
        UsageError: if the limit is out of the metric's range.
    """

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise UnknownNameError.among("metric", self.metric, _METRICS)
        require_range(self.metric, self.limit, _METRICS[self.metric].low, _METRICS[self.metric].high)

    def is_defined(self, parity: Parity) -> bool:
        """Whether `parity` has a number for this gate: agreement, for one, has a meaning for class scores only."""
        return getattr(parity, self.metric) is not None

    def failure(self, parity: Parity) -> str | None:
        """Return how `parity` misses this gate, as a sentence, or None if it passes."""
        value: float | None = getattr(parity, self.metric)
        if value is None:
            return f"{self.metric} is not defined for these outputs, required {self}"
        passes = value >= self.limit if _METRICS[self.metric].at_least else value <= self.limit
        return None if passes else f"{self.metric} is {value:.7g}, required {self}"

    def __str__(self) -> str:
        return f"at {'least' if _METRICS[self.metric].at_least else 'most'} {self.limit:.7g}"


def parse_gate(text: str) -> Gate:
    """Read a gate as written on the command line.

    >>> parse_gate("cosine=0.9999")
    Gate(metric='cosine', limit=0.9999)

    Raises:
        UnknownNameError: if the metric is unknown.
        UsageError: if `text` is not METRIC=NUMBER, or the limit is out of the metric's range.
    """
    metric, _, number = text.partition("=")
    try:
        limit = float(number)
    except ValueError as exc:
        raise UsageError(text, "is not METRIC=NUMBER", "write it like cosine=0.9999") from exc
    return Gate(metric.strip(), limit)


DEFAULT_GATES: Final[Mapping[str, tuple[Gate, ...]]] = MappingProxyType(
    {
        "fp32": (Gate("cosine", 0.99999),),
        "fp16": (Gate("cosine", 0.9999),),
        "bf16": (Gate("cosine", 0.999),),
        "int8": (),
    }
)
"""Gates by the candidate's precision.

1 − cosine ≈ ε²/2 for a relative rms error ε, so the limits admit an ε of 0.45 %, 1.4 % and 4.5 %. Rounding to p
significant bits errs by at most 2⁻ᵖ, that is 2⁻ᵖ/√3 rms; independent roundings add in quadrature, and the longest path
(DenseNet-264) crosses 264 convolutions, hence an ε up to about 2⁻ᵖ·√(264/3): 0.00006 % for FP32 (p = 24), 0.46 % for
FP16 (p = 11), 3.7 % for BF16 (p = 8); an untrained DenseNet-264 run by torch on a CPU showed 0.06 % and 0.5 % for the
latter two. So each limit is above the rounding error of its precision, FP32's far above it, for kernels that sum in
another order. INT8 has no default limit: its error depends on the data, so the user sets one.
"""


def failed_gates(parity: Parity, gates: Iterable[Gate]) -> tuple[str, ...]:
    """Return a sentence for each gate that `parity` misses; NaN or infinite values fail even without a gate."""
    sentences = [gate.failure(parity) for gate in gates]
    if parity.nonfinite:
        sentences.insert(0, f"{parity.nonfinite} of {parity.count} values are NaN or infinite, required none")
    return tuple(sentence for sentence in sentences if sentence is not None)


def first_divergence(layers: Mapping[str, Parity], gates: Sequence[Gate]) -> str | None:
    """Return the name of the first layer, in execution order, that misses a gate; None if all pass.

    A gate on a metric that is not measured of layers does not judge them.
    """
    for name, parity in layers.items():
        if failed_gates(parity, [gate for gate in gates if gate.is_defined(parity)]):
            return name
    return None

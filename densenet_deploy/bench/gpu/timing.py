"""What the events of many inferences say, summed up as `trtexec` sums up, so that both can be laid side by side.

Percentiles are values that occurred: of N sorted times the one at max(N − 1 − int((1 − p/100)·N), 0), computed with the
rounding of float32. Latency is copying in, computing and copying out, one after the other; throughput counts from the
start of the first inference to the end of the last, in which they overlap.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from densenet_deploy.bench.measurement import variation
from densenet_deploy.errors import BackendError

LAUNCH_BOUND: Final = 0.8  # of the time to compute: launching takes about as long as what is launched
UNSTABLE: Final = 0.025  # coefficient of variation of the time to compute


@dataclass(frozen=True)
class Trace:
    """One inference, in milliseconds: its start and end on the GPU's clock, its parts, and launching it on the CPU.

    `upload` and `download` are 0 where nothing was copied.
    """

    start: float
    end: float
    compute: float
    enqueue: float
    upload: float = 0.0
    download: float = 0.0

    @property
    def latency(self) -> float:
        return self.upload + self.compute + self.download


@dataclass(frozen=True)
class Spread:
    """Milliseconds of many inferences."""

    min: float
    max: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Self:
        """Sum up `times`, at least one.

        >>> Spread.of([4.0, 1.0, 3.0, 2.0]).p90
        4.0
        """
        ordered = sorted(times)
        percentiles = (_percentile(ordered, percent) for percent in (90, 95, 99))
        return cls(ordered[0], ordered[-1], float(np.mean(ordered)), float(np.median(ordered)), *percentiles)


@dataclass(frozen=True)
class GpuTiming:
    """What the inferences of one run of `batch` images each took, warm-up not among them.

    Attributes:
        traces: in order, at least one.
        transfers: whether images were copied to the GPU and answers back.
        no_graph: why the work was not launched as one CUDA graph; empty where it was.
    """

    traces: tuple[Trace, ...]
    batch: int
    transfers: bool
    no_graph: str = ""

    def __post_init__(self) -> None:
        if not self.traces:
            raise BackendError("trtexec", "no inference ended after the warm-up", "time it longer with --seconds")

    @functools.cached_property
    def latency(self) -> Spread:
        return Spread.of([trace.latency for trace in self.traces])

    @functools.cached_property
    def compute(self) -> Spread:
        return Spread.of([trace.compute for trace in self.traces])

    @functools.cached_property
    def enqueue(self) -> Spread:
        return Spread.of([trace.enqueue for trace in self.traces])

    @functools.cached_property
    def upload(self) -> Spread:
        return Spread.of([trace.upload for trace in self.traces])

    @functools.cached_property
    def download(self) -> Spread:
        return Spread.of([trace.download for trace in self.traces])

    @property
    def images_per_second(self) -> float:
        seconds = (self.traces[-1].end - self.traces[0].start) / 1e3
        return len(self.traces) * self.batch / seconds

    @property
    def variation(self) -> float:
        """Coefficient of variation of the time to compute."""
        return variation([trace.compute for trace in self.traces])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps these figures from being those of the model on this GPU."""
        return tuple(self._warnings())

    def to_json(self) -> dict[str, object]:
        """Return the figures with plain types; those of copies are None where nothing was copied."""
        copies = {"h2d_ms": self.upload, "d2h_ms": self.download}
        return {
            "inferences": len(self.traces),
            "images_per_second": self.images_per_second,
            "latency_ms": dataclasses.asdict(self.latency),
            "gpu_compute_ms": dataclasses.asdict(self.compute),
            "enqueue_ms": dataclasses.asdict(self.enqueue),
            **{name: dataclasses.asdict(spread) if self.transfers else None for name, spread in copies.items()},
            "variation": self.variation,
            "transfers": self.transfers,
            "cuda_graph": not self.no_graph,
            "no_cuda_graph": self.no_graph or None,
            "warnings": list(self.warnings),
        }

    def _warnings(self) -> Iterator[str]:
        compute, enqueue = self.compute.median, self.enqueue.median
        if enqueue > LAUNCH_BOUND * compute:
            fix = "a CUDA graph or a larger batch would help" if self.no_graph else "a larger batch would help"
            yield f"bound by launch: launching takes {enqueue:.3f} ms, computing {compute:.3f} ms; {fix}"
        for name, spread in (("to the GPU", self.upload), ("from the GPU", self.download)):
            if self.transfers and spread.median >= compute:
                yield f"bound by copies: {name} {spread.median:.3f} ms, computing {compute:.3f} ms"
        if self.variation > UNSTABLE:
            fix = "lock them with nvidia-smi --lock-gpu-clocks and time again"
            yield f"clocks are unstable: the time to compute varies by {self.variation:.1%}; {fix}"


def _percentile(ordered: Sequence[float], percent: float) -> float:
    left_out = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(len(ordered)))
    return ordered[max(len(ordered) - 1 - left_out, 0)]

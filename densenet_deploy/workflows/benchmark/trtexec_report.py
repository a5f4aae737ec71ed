"""What timing plans as `trtexec` does found, and the lines with which `trtexec` itself would be asked for the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final

from densenet_deploy.bench.gpu.loop import LoopOptions
from densenet_deploy.bench.gpu.timing import GpuTiming, Spread
from densenet_deploy.bench.machine import Machine
from densenet_deploy.errors import printable
from densenet_deploy.runtime.engine_files import Plan
from densenet_deploy.runtime.tensorrt.engine import Engine

_TOOLS: Final = {"tensorrt": "trtexec", "rtx": "tensorrt_rtx"}
_OTHER_DEFAULTS: Final = 11  # the TensorRT from which on `trtexec` copies nothing and records graphs unless told
_HEADER: Final = ("model", "batch", "images/s", "compute ms", "p99", "enqueue", "h2d", "d2h", "one by one", "load ms",
                  "context ms", "first ms")  # fmt: skip


@dataclass(frozen=True)
class GpuMeasurement:
    """One plan with one batch size.

    Attributes:
        alone: computing, with nothing copied.
        copied: with copies to the GPU and back.
        one_by_one: the same, each inference waited for before the next is launched.
        options: of `alone`.
        load_seconds, context_seconds, first_seconds: of loading the plan, making its context, the first inference.
        peak_memory_bytes: of the process so far, on the host.
    """

    plan: Plan
    engine: Engine
    batch: int
    alone: GpuTiming
    copied: GpuTiming
    one_by_one: GpuTiming
    options: LoopOptions
    load_seconds: float
    context_seconds: float
    first_seconds: float
    peak_memory_bytes: int

    @property
    def precision(self) -> str:
        """What most convolutions run in; `unknown` without a sidecar."""
        sidecar = self.plan.sidecar
        if sidecar is None:
            return "unknown"
        counts = Counter(word for word in sidecar.convolutions.values() if word != "unknown")
        return counts.most_common(1)[0][0] if counts else sidecar.precision

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps the figures from being those of the model; a word on copies comes from the run that has them."""
        copies = [warning for warning in self.copied.warnings if "copies" in warning]
        return tuple(f"{self.plan.path.name}, batch {self.batch}: {one}" for one in (*self.alone.warnings, *copies))

    def command(self, timing: GpuTiming) -> str:
        """Return the line that asks `trtexec` for what `timing` holds."""
        later = int(self.engine.trt.version.split(".")[0]) >= _OTHER_DEFAULTS
        words = [_TOOLS[self.engine.trt.flavour], f"--loadEngine={quote(str(self.plan.path))}", *self._shapes()]
        if not timing.transfers:
            words.append("--noDataTransfers")
        elif later:
            words.append("--includeDataTransfers")
        if not timing.no_graph:
            words.append("--useCudaGraph")
        elif later:
            words.append("--noCudaGraph")
        seconds = self.options.duration_ms / 1e3
        numbers = f"--warmUp={self.options.warm_up_ms:g} --duration={seconds:g} --iterations={self.options.iterations}"
        return " ".join([*words, "--useSpinWait", numbers, "--percentile=90,95,99"])

    def to_json(self) -> dict[str, object]:
        """Return everything with plain types; under the keys of every benchmark those of `alone`."""
        engine, latency = self.engine, self.alone.latency
        return {
            "model": str(self.plan.path),
            "backend": engine.trt.flavour,
            "version": engine.trt.version,
            "device": f"cuda:{engine.gpu.index}",
            "gpu": engine.gpu.name,
            "compute_capability": engine.gpu.compute_capability,
            "precision": self.precision,
            "batch": self.batch,
            "latency_ms": dataclasses.asdict(latency) | {"p50": latency.median},
            "images_per_second": self.alone.images_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "alone": self.alone.to_json() | {"command": self.command(self.alone)},
            "copied": self.copied.to_json() | {"command": self.command(self.copied)},
            "one_by_one": self.one_by_one.to_json(),
            "load_ms": self.load_seconds * 1e3,
            "context_ms": self.context_seconds * 1e3,
            "first_ms": self.first_seconds * 1e3,
            "warm_up_ms": self.options.warm_up_ms,
            "spin_wait": True,
        }

    def _shapes(self) -> list[str]:
        """Sizes of inputs whose batch varies."""
        dynamic = [spec for spec in self.engine.inputs if spec.shape[0] is None]
        sizes = [f"{spec.name}:{'x'.join(map(str, (self.batch, *spec.shape[1:])))}" for spec in dynamic]
        return [f"--shapes={','.join(sizes)}"] if sizes else []


@dataclass(frozen=True)
class TrtexecReport:
    """A measurement for each plan and batch size, and the machine."""

    results: tuple[GpuMeasurement, ...]
    machine: Machine
    remarks: tuple[str, ...] = ()
    file: Path | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        warnings = (warning for result in self.results for warning in result.warnings)
        return (*self.remarks, *self.machine.notes, *warnings)

    def to_json(self) -> dict[str, object]:
        """Return the report with plain types."""
        return {
            "results": [result.to_json() for result in self.results],
            "machine": dataclasses.asdict(self.machine),
            "like": "trtexec",
            "file": None if self.file is None else str(self.file),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return a table, and the lines for `trtexec`."""
        cells = [_HEADER, *map(_row, self.results)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        commands = [f"the same       {printable(result.command(result.alone), 600)}" for result in self.results]
        wrote = [] if self.file is None else [f"wrote {printable(self.file)}"]
        return "\n".join([*map(str.rstrip, table), "", str(self.machine), *commands, *wrote])


def _row(result: GpuMeasurement) -> Sequence[str]:
    alone, copied = result.alone, result.copied
    return (
        printable(result.plan.path.name, 60),
        str(result.batch),
        f"{alone.images_per_second:.1f}",
        _middle(alone.compute),
        f"{alone.compute.p99:.3f}",
        _middle(alone.enqueue),
        _middle(copied.upload),
        _middle(copied.download),
        _middle(result.one_by_one.latency),
        f"{result.load_seconds * 1e3:.0f}",
        f"{result.context_seconds * 1e3:.0f}",
        f"{result.first_seconds * 1e3:.2f}",
    )


def _middle(spread: Spread) -> str:
    return f"{spread.median:.3f}"

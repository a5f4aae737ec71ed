"""A process that builds one engine and can be ended at any moment: the caller's side.

TensorRT builds inside one long native call that no signal interrupts, may crash, and prints on both standard streams.
In a worker none of that reaches the caller: an interrupt ends the process, a crash is a typed error, and the prints go
nowhere. `build_worker.py` is the other side. The plan never crosses the pipe: the child writes it to a file, this
process waits for the disk, and both need little more memory than a bare builder.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.artifacts import sync
from densenet_deploy.engines import BUILD_WORKER, BUILD_WORKER_FLAGS
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import EnginePrecision
from densenet_deploy.errors import ResourceError
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.batching import BatchProfile
from densenet_deploy.runtime.sidecar import TensorFacts
from densenet_deploy.worker import Worker, WorkerDiedError


@dataclass(frozen=True)
class Toolchain:
    """What builds: the version of the flavour, and the GPU at hand with its compute capability, if there is one."""

    version: str
    gpu: str | None
    compute_capability: str | None


@dataclass(frozen=True)
class BuildResult:
    """A plan on the disk, and what is known about it.

    Attributes:
        sha256, size: of the plan, the size in bytes.
        targets: compute capabilities that the plan names; empty where it does not say.
        profiles: ranges of batch sizes, at least one.
        asked: the precision that the graph asks for, by the name of the convolution.
        precision: what the convolutions run in, read back from the engine.
        seconds: of the parts of the build.
    """

    sha256: str
    size: int
    targets: tuple[str, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    profiles: tuple[BatchProfile, ...]
    asked: Mapping[str, str]
    precision: EnginePrecision
    notes: tuple[str, ...]
    seconds: Mapping[str, float]


class Builder(Worker):
    """A process that builds one engine; a context manager that leaves no process behind."""

    def __init__(self, options: BuildOptions) -> None:
        """Start the process, or take the one started ahead; it imports TensorRT and checks `options` meanwhile."""
        super().__init__(BUILD_WORKER, subject="TensorRT", flags=BUILD_WORKER_FLAGS)
        self.send(to_plain(options))

    def toolchain(self) -> Toolchain:
        """Return what will build, once it has accepted the options.

        Raises:
            MissingPackageError: if the flavour is not installed.
            DeviceError: if it needs a device that is not there.
            BackendError: if it cannot do what was asked.
        """
        return from_plain(Toolchain, self.receive())

    def build(self, onnx: Path, plan: Path) -> BuildResult:
        """Build the ONNX file and write `plan`, a new file; its bytes are on the disk when this returns.

        Raises:
            DensenetDeployError: whatever `engine_from_onnx` raises.
            ResourceError: if the process was killed, which is what happens when memory runs out.
            BackendError: if TensorRT crashed.
            OSError: if the plan cannot be written.
        """
        try:
            self.send([str(onnx.absolute()), str(plan.absolute())])
            self.receive()
            sync(plan)  # while the child reads the engine back
            return from_plain(BuildResult, self.receive())
        finally:
            self.kill()  # it is not needed any more, takes a while to free its memory, or may still write

    def close(self, *, at_once: bool = True) -> None:  # noqa: ARG002 - TensorRT takes long to end by itself
        """End the process, whatever it is doing."""
        super().close(at_once=True)

    def receive(self) -> Any:
        """Wait for the next answer; a process that the system killed ran out of memory."""
        try:
            return super().receive()
        except WorkerDiedError as exc:
            if exc.signal != signal.SIGKILL:
                raise
            fix = "close other programs or build a smaller batch; the ONNX is kept"
            raise ResourceError("TensorRT", exc.why, fix) from exc

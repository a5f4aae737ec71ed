"""A process that builds one engine, and can be ended at any moment: what the caller sees of it.

TensorRT builds inside one long native call that no signal interrupts, may crash, and prints on both standard streams.
In a child none of that reaches the caller: an interrupt kills the child, a crash is a typed error, the prints go
nowhere. What the child does, and what both say to each other, is in `worker.py`. The plan never comes here: the child
writes it to a file, this process waits for the disk, and both cost little more memory than a bare builder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from densenet_deploy import errors
from densenet_deploy.artifacts import sync
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import PrecisionProof
from densenet_deploy.engines.process import take
from densenet_deploy.errors import BackendError, DensenetDeployError, ResourceError
from densenet_deploy.processes import end, say
from densenet_deploy.runtime.engine_facts import BatchProfile, TensorFacts

log = logging.getLogger(__name__)

_KILLED: Final = -9


@dataclass(frozen=True)
class Toolchain:
    """What builds: the version of the flavour, and the GPU at hand with its compute capability, if there is one."""

    version: str
    gpu: str | None
    compute_capability: str | None


@dataclass(frozen=True)
class BuildResult:
    """A plan on the disk, what it says of itself, what was asked and what runs. See `PlanHeader` and `BuiltEngine`."""

    sha256: str
    size: int
    targets: tuple[str, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    profiles: tuple[BatchProfile, ...]
    asked: Mapping[str, str]
    proof: PrecisionProof
    notes: tuple[str, ...]
    seconds: Mapping[str, float]


class Builder:
    """A process that builds one engine; a context manager, which leaves no process behind."""

    def __init__(self, options: BuildOptions) -> None:
        """Take a process, or start one, which imports TensorRT and checks `options` while the caller goes on."""
        verbose = log.isEnabledFor(logging.INFO)
        self._process = take(verbose=verbose)
        self._tell({"options": options.to_facts(), "verbose": verbose})

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def toolchain(self) -> Toolchain:
        """Return what will build, once it has agreed to the options.

        Raises:
            MissingPackageError: if the flavour is not installed.
            DeviceError: if it takes a device that is not there.
            BackendError: if it cannot do what was asked.
        """
        return Toolchain(**self._hear())

    def build(self, onnx: Path, plan: Path) -> BuildResult:
        """Build the ONNX file and write `plan`, a new file; its bytes are on the disk when this returns.

        Raises:
            DensenetDeployError: whatever `engine_from_onnx` raises.
            ResourceError: if the process was killed, which is what happens when memory runs out.
            BackendError: if TensorRT crashed.
            OSError: if the plan cannot be written.
        """
        try:
            self._tell({"onnx": str(onnx.absolute()), "plan": str(plan.absolute())})
            size = int(self._hear()["written"])
            sync(plan)  # while the child reads back what runs
            facts = self._hear()
        finally:
            self._process.kill()  # it is not needed any more, takes a while to give its memory back, or may still write
        return BuildResult(
            facts["sha256"],
            size,
            tuple(facts["targets"]),
            _tensors(facts["inputs"]),
            _tensors(facts["outputs"]),
            tuple(BatchProfile(**profile) for profile in facts["profiles"]),
            facts["asked"],
            PrecisionProof.from_facts(facts["proof"]),
            tuple(facts["notes"]),
            facts["seconds"],
        )

    def close(self) -> None:
        """End the process, whatever it is doing."""
        end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # a child that is gone shows when it is heard
            say(self._process.stdin, message)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            name, subject, why, fix = answer["error"]
            raise getattr(errors, name)(subject, why, fix)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        return answer

    def _death(self) -> DensenetDeployError:
        """Say how the process ended that gave no answer."""
        code = self._process.wait()
        if code == _KILLED:
            fix = "close other programs or build a smaller batch; the ONNX is kept"
            return ResourceError("TensorRT", "its process was killed, as systems do when memory runs out", fix)
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code} and no answer"
        return BackendError("TensorRT", f"its process {how}", "run again with -v to see its log")


def _tensors(facts: list[dict[str, Any]]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(fact["name"], fact["dtype"], tuple(fact["shape"])) for fact in facts)

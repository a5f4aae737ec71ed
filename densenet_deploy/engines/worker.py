"""Builds in a process of their own, `python -m densenet_deploy.engines.worker`, which the parent can end at any moment.

TensorRT builds inside one long native call that no signal interrupts, may crash, and prints on both standard streams.
In a child none of that reaches the caller: an interrupt kills the child, a crash is a typed error, the prints go
nowhere. The child is started early, and imports TensorRT while the parent prepares the graph. Both sides speak lines of
JSON; the plan follows the last line as it is::

    parent   {"options": {...}, "verbose": false}
    child    {"version": "1.7.1.116", "gpu": null}                        or {"error": ["BackendError", ...]}
    parent   "artifacts/densenet121.fp16.onnx"
    child    {"bytes": 24387916, "inputs": [...], "asked": {...}, ...}    and as many bytes

A child that finds its standard input closed before it is done has lost its parent, and ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from densenet_deploy import errors
from densenet_deploy.engines.options import BuildOptions
from densenet_deploy.engines.precision import PrecisionProof
from densenet_deploy.errors import BackendError, DensenetDeployError, ResourceError
from densenet_deploy.runtime.sidecar import BatchProfile, TensorFacts
from densenet_deploy.runtime.trt import TensorRT

log = logging.getLogger(__name__)

_KILLED: Final = -9
_PIPE_BYTES: Final = 2**20  # the most that Linux gives everybody: a plan passes in fewer turns


@dataclass(frozen=True)
class Toolchain:
    """What builds: the version of the flavour, and the GPU at hand with its compute capability, if there is one."""

    version: str
    gpu: str | None
    compute_capability: str | None


@dataclass(frozen=True)
class BuildResult:
    """A plan, what the network takes and gives, what was asked and what runs. See `BuiltEngine`."""

    plan: bytearray
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
        """Start the process, which imports TensorRT and checks `options` while the caller goes on."""
        verbose = log.isEnabledFor(logging.INFO)
        paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._flavour = options.flavour
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "densenet_deploy.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
            pipesize=_PIPE_BYTES,
            start_new_session=True,  # a Ctrl-C of the terminal is the parent's to answer
        )
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

    def build(self, onnx: Path) -> BuildResult:
        """Build the ONNX file.

        Raises:
            DensenetDeployError: whatever `engine_from_onnx` raises.
            ResourceError: if the process was killed, which is what happens when memory runs out.
            BackendError: if TensorRT crashed.
        """
        self._tell(str(onnx.absolute()))
        facts = self._hear()
        plan = self._read(int(facts["bytes"]))
        self._process.kill()  # it is not needed any more, and takes a while to give its memory back
        return BuildResult(
            plan,
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
        self._process.kill()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _stdin(self) -> BinaryIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value]

    @property
    def _stdout(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def _tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # a child that is gone shows when it is heard
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def _hear(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            name, subject, why, fix = answer["error"]
            raise getattr(errors, name)(subject, why, fix)
        return answer

    def _read(self, count: int) -> bytearray:
        plan = bytearray(count)  # read in place: a second copy would cost as much memory as the engine
        view, done = memoryview(plan), 0
        while done < count:
            read = self._stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not read:
                raise self._death()
            done += read
        return plan

    def _death(self) -> DensenetDeployError:
        """Say how the process ended that gave no answer."""
        code = self._process.wait()
        if code == _KILLED:
            fix = "close other programs or build a smaller batch; the ONNX is kept"
            return ResourceError("TensorRT", "its process was killed, as systems do when memory runs out", fix)
        how = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with {code} and no answer"
        return BackendError("TensorRT", f"its process {how}", "run again with -v to see its log")


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer the parent: agree to the options, then build."""
    request = json.loads(questions.readline())
    if request["verbose"]:
        logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        for answer in _answers(request["options"], questions):
            if isinstance(answer, dict):
                answers.write(json.dumps(answer).encode() + b"\n")
            else:
                answers.write(answer)
            answers.flush()
    except MemoryError:
        fix = "close other programs or build a smaller batch; the ONNX is kept"
        _answer_error(answers, ResourceError("TensorRT", "memory ran out while building", fix))
    except DensenetDeployError as exc:
        _answer_error(answers, exc)


def _answer_error(answers: BinaryIO, exc: DensenetDeployError) -> None:
    facts = {"error": [type(exc).__name__, exc.subject, exc.why, exc.fix]}
    answers.write(json.dumps(facts).encode() + b"\n")
    answers.flush()


def _answers(facts: Mapping[str, Any], questions: BinaryIO) -> Iterator[Any]:
    from densenet_deploy.engines.support import require_supported
    from densenet_deploy.engines.tensorrt import engine_from_onnx
    from densenet_deploy.runtime.gpus import find_gpus
    from densenet_deploy.runtime.trt import load_tensorrt

    options = BuildOptions.from_facts(facts)
    trt, gpus = load_tensorrt(options.flavour), find_gpus()
    require_supported(trt, options, gpus)
    names = (gpus[0].name, gpus[0].compute_capability) if gpus else (None, None)
    yield asdict(Toolchain(trt.version, *names))
    onnx = questions.readline()
    if not onnx:
        return
    _end_with(questions)
    built = engine_from_onnx(trt, Path(json.loads(onnx)), options)
    proof = _proof(trt, built.plan, options)
    yield {
        "bytes": built.plan.nbytes,
        "inputs": [asdict(tensor) for tensor in built.inputs],
        "outputs": [asdict(tensor) for tensor in built.outputs],
        "profiles": [asdict(profile) for profile in built.profiles],
        "asked": built.asked,
        "proof": proof.to_facts(),
        "notes": built.notes,
        "seconds": {"parse": built.parse_seconds, "build": built.build_seconds},
    }
    yield built.plan


def _proof(trt: TensorRT, plan: Any, options: BuildOptions) -> PrecisionProof:
    from densenet_deploy.engines.precision import from_inspector
    from densenet_deploy.engines.rtx_plan import read_rtx_plan

    if trt.features.compute_capabilities:
        return read_rtx_plan(bytes(plan))
    if options.strip_weights:
        return PrecisionProof(())  # cannot be opened before it is refitted
    runtime = trt.module.Runtime(trt.log.native)
    runtime.engine_host_code_allowed = options.version_compatible  # the plan was built here a moment ago
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError("engine", f"does not load where it was built: {trt.log.last_error()}", "report this")
    inspector = engine.create_engine_inspector()
    return from_inspector(inspector.get_engine_information(trt.module.LayerInformationFormat.JSON))


def _end_with(questions: BinaryIO) -> None:
    """End this process when its parent closes the line, whatever native call it is in."""

    def wait() -> None:
        questions.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _tensors(facts: list[dict[str, Any]]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(fact["name"], fact["dtype"], tuple(fact["shape"])) for fact in facts)


def _answers_only() -> BinaryIO:
    """Return standard output, and let whatever native code writes there go to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), _answers_only() as stream:
        serve(sys.stdin.buffer, stream)

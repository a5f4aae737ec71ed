"""A candidate is a model to time; its worker is the process that runs it when asked.

The waiting threads of a backend spin on the cores for a while, so two models in one process disturb each other. Here
each has a process of its own that blocks on its standard input until its next round. Both sides speak lines of JSON::

    parent   {"model": "a.onnx", "backend": null, "batch": 1, ...}      once
    child    {"placement": {"backend": "onnxruntime", ...}, ...}        or {"error": ["ModelFileError", ...]}
    parent   0.25                                                       run for that many seconds
    child    {"seconds": [0.0151, 0.0149, ...], "peak_memory_bytes": 350000000, ...}

What a backend prints goes to standard error, and is shown with -v. A terminal's Ctrl-C reaches only the parent, which
ends its children; a child whose parent has ended ends by itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np

from densenet_deploy import errors
from densenet_deploy.bench.machine import gpu_memory_used_bytes
from densenet_deploy.bench.scenarios import Call, RoundTiming, camera, offline, single_stream
from densenet_deploy.errors import BackendError, DensenetDeployError, FeedError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.processes import answers, end, say, start
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.feeds import Feeds
from densenet_deploy.runtime.runner import Placement, Runner, RunnerOptions, open_runner
from densenet_deploy.runtime.timing import BackendClock

_PAUSE_SECONDS: Final = 0.05  # after each round, until the threads of the backend stop spinning
_STATUS: Final = Path("/proc/self/status")

log = logging.getLogger(__name__)

Opener = Callable[[Path, str | None, str | None, RunnerOptions], Runner]


class BatchRefusedError(BackendError):
    """The model does not accept this batch size, though it may accept others."""


@dataclass(frozen=True)
class Candidate:
    """A model to time, on seeded noise.

    Attributes:
        model: an ONNX or OpenVINO file, or whatever else `program` opens.
        backend, device, precision, threads: see `open_runner` and `RunnerOptions`; None means their defaults.
        batch: images per call.
        streams: runners of the model that work at the same time, with `threads` each.
        fps: images arrive as the frames of a camera, one batch per frame; None: as soon as the last call is done.
        program: the module whose `main` the process runs; it calls `serve_candidate`.
    """

    model: Path
    backend: str | None = None
    batch: int = 1
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    streams: int = 1
    fps: float | None = None
    program: str = "densenet_deploy.bench.candidate"

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        require_range("streams", self.streams, 1, 1024)
        if self.fps is not None:
            require_range("fps", self.fps, 0.01, 10_000.0)


@dataclass(frozen=True)
class Opening:
    """How a model was opened.

    Attributes:
        placement: where it runs.
        load_seconds: time to open it, including the import of its backend.
        first_seconds: time of the first call.
        device_memory_bytes: growth of the memory in use on the NVIDIA GPUs; None on other devices.
    """

    placement: Placement
    load_seconds: float
    first_seconds: float
    device_memory_bytes: int | None


class CandidateWorker:
    """The process of a candidate; a context manager.

    >>> with CandidateWorker(Candidate(Path("a.onnx"))) as worker:             # doctest: +SKIP
    ...     worker.measure(seconds=1.0).median
    0.0151
    """

    def __init__(self, candidate: Candidate) -> None:
        """Start the process; it loads the model while the caller continues."""
        self._candidate = candidate
        self._process = start(candidate.program, verbose=log.isEnabledFor(logging.INFO))
        self._send(asdict(candidate) | {"model": str(candidate.model)})

    @functools.cached_property
    def opening(self) -> Opening:
        """How the model was opened; waits until it is loaded and has run once.

        Raises:
            BatchRefusedError: if the model does not accept the batch size.
            DensenetDeployError: whatever `open_runner` or a call raises, or BackendError if the process dies.
        """
        answer = self._receive()
        facts = answer["placement"]
        return Opening(**answer | {"placement": Placement(**facts | {"notes": tuple(facts["notes"])})})

    @property
    def placement(self) -> str:
        """Where the model runs, once it is loaded; raises as `opening` does."""
        return str(self.opening.placement)

    def measure(self, seconds: float) -> RoundTiming:
        """Run the model for about `seconds` after its warm-up calls, and wait until its threads are quiet.

        Raises:
            DensenetDeployError: whatever `open_runner` or a call raises, or BackendError if the process dies.
        """
        _ = self.opening  # waits until it is loaded
        self._send(seconds)
        answer = self._receive()
        time.sleep(_PAUSE_SECONDS)
        return RoundTiming(**answer | {"seconds": tuple(answer["seconds"])})

    def close(self, *, at_once: bool = False) -> None:
        """End the process; with `at_once` even in the middle of a call."""
        if not at_once and self._process.stdin is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(timeout=5)
        end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=exc is not None)

    def _send(self, question: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # a child that has ended is noticed when its answer is read
            say(self._process.stdin, question)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BackendError(self._candidate.model, f"its process ended with {code}", "run it alone to see why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            name, subject, why, fix = answer["error"]
            kind = BatchRefusedError if name == BatchRefusedError.__name__ else getattr(errors, name)
            raise kind(subject, why, fix)
        return answer


def main() -> None:
    """Serve a candidate that `open_runner` opens."""
    serve_candidate(open_runner)


def serve_candidate(opener: Opener) -> None:
    """Be the process of a candidate whose model `opener` opens, until standard input ends."""
    with answers() as stream:
        _serve(sys.stdin.buffer, stream, opener)


def _serve(questions: BinaryIO, stream: BinaryIO, opener: Opener) -> None:
    first = questions.readline()
    if not first:
        return  # the parent ended before it asked
    facts = json.loads(first)
    for answer in _answers(Candidate(**(facts | {"model": Path(facts["model"])})), questions, opener):
        say(stream, answer)


def _answers(candidate: Candidate, questions: BinaryIO, opener: Opener) -> Iterator[dict[str, object]]:
    try:
        with contextlib.ExitStack() as stack:
            opening, runners = _open(candidate, opener, stack)
            feeds = _noise(runners[0], candidate.batch)
            clock = BackendClock(runners[0])
            calls: list[Call] = [functools.partial(runner.run, feeds) for runner in runners]
            yield asdict(opening)
            for line in questions:
                clock.calls.clear()
                yield asdict(_with_backend_time(_timed(calls, candidate, json.loads(line)), candidate, clock))
    except Exception as exc:
        error = exc if isinstance(exc, DensenetDeployError) else errors.from_memory_error(exc)
        if error is None:
            raise
        yield {"error": [type(error).__name__, error.subject, error.why, error.fix]}


def _with_backend_time(timing: RoundTiming, candidate: Candidate, clock: BackendClock) -> RoundTiming:
    inside = math.fsum(clock.calls[-len(timing.seconds) :])
    is_single = candidate.streams == 1 and candidate.fps is None
    return replace(timing, peak_memory_bytes=peak_memory_bytes(), inside_seconds=inside if is_single else None)


def _open(candidate: Candidate, opener: Opener, stack: contextlib.ExitStack) -> tuple[Opening, list[Runner]]:
    options = RunnerOptions(
        threads=candidate.threads, precision=candidate.precision, batch=candidate.batch, check_values=False
    )
    memory, start = gpu_memory_used_bytes(), time.perf_counter()
    runners = [
        stack.enter_context(opener(candidate.model, candidate.backend, candidate.device, options))
        for _ in range(candidate.streams)
    ]
    load_seconds = time.perf_counter() - start
    first_seconds = _first_call(candidate, runners[0])
    grown = None
    if memory is not None and runners[0].placement.device.startswith("cuda"):
        grown = (gpu_memory_used_bytes() or memory) - memory
    return Opening(runners[0].placement, load_seconds, first_seconds, grown), runners


def _first_call(candidate: Candidate, runner: Runner) -> float:
    fixed = fixed_batch(runner)
    why = f"does not accept batch {candidate.batch}"
    if fixed not in (None, candidate.batch):
        fix = f"time it with batch {fixed}, or export it with --batch dynamic"
        raise BatchRefusedError(candidate.model, why, fix)
    feeds, start = _noise(runner, candidate.batch), time.perf_counter()
    try:
        runner.run(feeds)
    except FeedError as exc:
        raise BatchRefusedError(candidate.model, f"{why}: {exc.why}", exc.fix) from exc
    return time.perf_counter() - start


def _noise(runner: Runner, batch: int) -> Feeds:
    """Seeded noise; for a model of any image size, of the size in its manifest."""
    spec = runner.inputs[0]
    known = runner.manifest.preprocessing if runner.manifest else Preprocessing()
    usual = (batch, 3, known.image_size, known.image_size)
    shape = [batch, *(size or usual[axis] for axis, size in enumerate(spec.shape[1:], start=1))]
    return {spec.name: np.random.default_rng(0).standard_normal(shape, np.float32).astype(spec.dtype)}


def _timed(calls: list[Call], candidate: Candidate, seconds: float) -> RoundTiming:
    if len(calls) > 1:
        return offline(calls, seconds)
    return single_stream(calls[0], seconds) if candidate.fps is None else camera(calls[0], seconds, candidate.fps)


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far; 0 if the system does not report it.

    Linux: VmHWM of proc_pid_status(5). The maximum of getrusage(2) survives exec(3) there: a child starts with that of
    its parent. Elsewhere getrusage, in bytes on macOS and KiB on other systems.
    """
    peak_kib = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if _STATUS.exists() else None
    if peak_kib is not None:
        return int(peak_kib[1]) * 1024
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

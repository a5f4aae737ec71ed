"""One model in a process of its own, which runs it when told to.

The waiting threads of a backend spin on the cores for a while, so two models in one process disturb each other. Here
each lives alone and blocks on its standard input until its turn. Both sides speak lines of JSON::

    parent   {"model": "a.onnx", "backend": null, "batch": 1, ...}      once
    child    {"placement": {"backend": "onnxruntime", ...}, ...}        or {"error": ["ModelFileError", ...]}
    parent   0.25                                                       a turn of so many seconds
    child    {"seconds": [0.0151, 0.0149, ...], "peak_memory_bytes": 350000000, ...}

What a backend prints goes to standard error, and is shown with -v. A terminal's Ctrl-C reaches the parent alone, which
ends its children; a child whose parent is gone ends by itself.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np

from densenet_deploy import errors
from densenet_deploy.bench.machine import gpu_memory_used_bytes
from densenet_deploy.bench.scenarios import Timing, Turn, camera, offline, single_stream
from densenet_deploy.errors import BackendError, DensenetDeployError, FeedError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.processes import answers, end, say, start
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.feeds import Feeds
from densenet_deploy.runtime.runner import Placement, Runner, RunnerOptions, open_runner
from densenet_deploy.runtime.timing import BackendClock

_PAUSE_SECONDS: Final = 0.05  # after a turn, for its threads to stop spinning
_STATUS: Final = Path("/proc/self/status")
_MOST_STREAMS: Final = 1024
_HIGHEST_FPS: Final = 10_000.0

log = logging.getLogger(__name__)

Opener = Callable[[Path, str | None, str | None, RunnerOptions], Runner]


class BatchRefusedError(BackendError):
    """The model takes no batch of that size, though it may take others."""


@dataclass(frozen=True)
class Contender:
    """What to time: a model file on a backend, with seeded noise of `batch` images.

    Attributes:
        model: an ONNX or OpenVINO file, or whatever else `program` opens.
        backend, device, precision, threads: see `open_runner` and `RunnerOptions`; None means their defaults.
        streams: runners of the model that work at the same time, `threads` each.
        fps: let a camera give the images, one `batch` a frame; None: as soon as the one before is done.
        program: the module whose `main` the process runs; it calls `serve_contender`.
    """

    model: Path
    backend: str | None = None
    batch: int = 1
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    streams: int = 1
    fps: float | None = None
    program: str = "densenet_deploy.bench.contender"

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        require_range("streams", self.streams, 1, _MOST_STREAMS)
        if self.fps is not None:
            require_range("fps", self.fps, 0.01, _HIGHEST_FPS)


@dataclass(frozen=True)
class Opening:
    """How the model came up.

    Attributes:
        placement: where it runs.
        load_seconds: of opening it, the import of its backend included.
        first_seconds: of the first call.
        device_memory_bytes: by how much the memory in use on the NVIDIA GPUs grew meanwhile; None on other devices.
    """

    placement: Placement
    load_seconds: float
    first_seconds: float
    device_memory_bytes: int | None


class Process:
    """A contender's process, ready for its turns; a context manager."""

    def __init__(self, contender: Contender) -> None:
        """Start the process, which loads the model while the caller goes on."""
        self._contender = contender
        self._process = start(contender.program, verbose=log.isEnabledFor(logging.INFO))
        self._tell(asdict(contender) | {"model": str(contender.model)})

    @functools.cached_property
    def opening(self) -> Opening:
        """How the model came up, once it is loaded and has run once.

        Raises:
            BatchRefusedError: if the model does not take that batch.
            DensenetDeployError: whatever `open_runner` or a call raises, or BackendError if the process dies.
        """
        answer = self._hear()
        facts = answer["placement"]
        return Opening(**answer | {"placement": Placement(**facts | {"notes": tuple(facts["notes"])})})

    @property
    def placement(self) -> str:
        """Where the model runs, once it is loaded; raises as `opening` does."""
        return str(self.opening.placement)

    def turn(self, seconds: float) -> Turn:
        """Let the model run for about `seconds`, warm-up calls not counted, and wait until its threads are quiet.

        Raises:
            DensenetDeployError: whatever `open_runner` or a call raises, or BackendError if the process dies.
        """
        _ = self.opening  # waits until it is loaded
        self._tell(seconds)
        answer = self._hear()
        time.sleep(_PAUSE_SECONDS)
        return Turn(**answer | {"seconds": tuple(answer["seconds"])})

    def close(self, *, at_once: bool = False) -> None:
        """End the process, in the middle of a call if it must be `at_once`."""
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

    def _tell(self, question: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # a child that is gone shows when it is heard
            say(self._process.stdin, question)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BackendError(self._contender.model, f"its process ended with {code}", "run it alone to see why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            name, subject, why, fix = answer["error"]
            kind = BatchRefusedError if name == BatchRefusedError.__name__ else getattr(errors, name)
            raise kind(subject, why, fix)
        return answer


def main() -> None:
    """Be a contender's process."""
    serve_contender(open_runner)


def serve_contender(opener: Opener) -> None:
    """Be a contender's process, whose model `opener` opens: answer what stands on standard input, until it ends."""
    with answers() as stream:
        _serve(sys.stdin.buffer, stream, opener)


def _serve(questions: BinaryIO, stream: BinaryIO, opener: Opener) -> None:
    """Open the model that the first line of `questions` names and answer each further line with a turn."""
    first = questions.readline()
    if not first:
        return  # the parent ended before it asked
    facts = json.loads(first)
    for answer in _answers(Contender(**(facts | {"model": Path(facts["model"])})), questions, opener):
        say(stream, answer)


def _answers(wanted: Contender, questions: BinaryIO, opener: Opener) -> Iterator[dict[str, object]]:
    try:
        with contextlib.ExitStack() as stack:
            opening, runners = _open(wanted, opener, stack)
            feeds = _noise(runners[0], wanted.batch)
            clock = BackendClock(runners[0])
            yield asdict(opening)
            for line in questions:
                clock.calls.clear()
                timing = _timed([functools.partial(runner.run, feeds) for runner in runners], wanted, json.loads(line))
                alone = len(runners) == 1 and wanted.fps is None
                yield {field.name: getattr(timing, field.name) for field in fields(timing)} | {
                    "peak_memory_bytes": peak_memory_bytes(),
                    "inside_seconds": math.fsum(clock.calls[-len(timing.seconds) :]) if alone else None,
                }
    except Exception as exc:
        error = exc if isinstance(exc, DensenetDeployError) else errors.from_memory_error(exc)
        if error is None:
            raise
        yield {"error": [type(error).__name__, error.subject, error.why, error.fix]}


def _open(wanted: Contender, opener: Opener, stack: contextlib.ExitStack) -> tuple[Opening, list[Runner]]:
    options = RunnerOptions(threads=wanted.threads, precision=wanted.precision, batch=wanted.batch, check_values=False)
    memory, start = gpu_memory_used_bytes(), time.perf_counter()
    runners = [
        stack.enter_context(opener(wanted.model, wanted.backend, wanted.device, options)) for _ in range(wanted.streams)
    ]
    load_seconds = time.perf_counter() - start
    first_seconds = _first_call(wanted, runners[0])
    grown = None
    if memory is not None and runners[0].placement.device.startswith("cuda"):
        grown = (gpu_memory_used_bytes() or memory) - memory
    return Opening(runners[0].placement, load_seconds, first_seconds, grown), runners


def _first_call(wanted: Contender, runner: Runner) -> float:
    fixed = fixed_batch(runner)
    if fixed not in (None, wanted.batch):
        fix = f"time it with batch {fixed}, or export with --batch dynamic"
        raise BatchRefusedError(wanted.model, f"takes no batch of {wanted.batch}", fix)
    feeds, start = _noise(runner, wanted.batch), time.perf_counter()
    try:
        runner.run(feeds)
    except FeedError as exc:
        raise BatchRefusedError(wanted.model, f"takes no batch of {wanted.batch}: {exc.why}", exc.fix) from exc
    return time.perf_counter() - start


def _noise(runner: Runner, batch: int) -> Feeds:
    """Seeded noise; where the model takes images of any size, of the size that its facts name."""
    spec = runner.inputs[0]
    known = runner.manifest.preprocessing if runner.manifest else Preprocessing()
    usual = (batch, 3, known.image_size, known.image_size)
    shape = [batch, *(size or usual[axis] for axis, size in enumerate(spec.shape[1:], start=1))]
    return {spec.name: np.random.default_rng(0).standard_normal(shape, np.float32).astype(spec.dtype)}


def _timed(calls: list[Callable[[], object]], wanted: Contender, seconds: float) -> Timing:
    if len(calls) > 1:
        return offline(calls, seconds)
    return single_stream(calls[0], seconds) if wanted.fps is None else camera(calls[0], seconds, wanted.fps)


def peak_memory_bytes() -> int:
    """Return the largest resident set of this process so far; 0 where the system does not say.

    Linux: VmHWM of proc_pid_status(5). The maximum of getrusage(2) survives exec(3) there: a child starts with the
    parent's. Elsewhere getrusage, in bytes on macOS and KiB on other systems.
    """
    peak_kib = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if _STATUS.exists() else None
    if peak_kib is not None:
        return int(peak_kib[1]) * 1024
    if os.name != "posix":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

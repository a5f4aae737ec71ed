"""A candidate is a model to time; its worker is the process that runs it when asked.

The waiting threads of a backend spin on the cores for a while, so two models in one process disturb each other. Here
each has a process of its own that waits until its next round. The messages (`worker.py` carries them)::

    parent   {"model": "a.onnx", "backend": null, "batch": 1, ...}      once
    child    {"placement": {"backend": "onnxruntime", ...}, ...}
    parent   0.25                                                       run for that many seconds
    child    {"seconds": [0.0151, 0.0149, ...], "peak_memory_bytes": 350000000, ...}
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from densenet_deploy.bench.machine import gpu_memory_used_bytes
from densenet_deploy.bench.scenarios import Call, RoundTiming, camera, offline, single_stream
from densenet_deploy.errors import BackendError, DensenetDeployError, FeedError
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.options import require_range
from densenet_deploy.records import from_plain, to_plain
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.feeds import Feeds
from densenet_deploy.runtime.runner import Placement, Runner, RunnerOptions, open_runner
from densenet_deploy.runtime.timing import BackendClock
from densenet_deploy.worker import Worker

_PAUSE_SECONDS: Final = 0.05  # after each round, until the threads of the backend stop spinning
FPS_RANGE: Final = 0.01, 10_000.0
_STATUS: Final = Path("/proc/self/status")

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
        program: the module with the `main` that the process runs; it calls `serve_candidate`.
        name: what reports call the model; None means its path.
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
    name: str | None = None

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)
        require_range("streams", self.streams, 1, 1024)
        if self.fps is not None:
            require_range("fps", self.fps, *FPS_RANGE)

    @property
    def title(self) -> str:
        """What reports and errors call the model."""
        return str(self.model) if self.name is None else self.name


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


class CandidateWorker(Worker):
    """The process of a candidate; a context manager.

    >>> with CandidateWorker(Candidate(Path("a.onnx"))) as worker:             # doctest: +SKIP
    ...     worker.measure(seconds=1.0).median
    0.0151
    """

    def __init__(self, candidate: Candidate) -> None:
        """Start the process; it loads the model while the caller continues."""
        super().__init__(candidate.program, subject=candidate.title)
        self._opened: Opening | DensenetDeployError | None = None
        self.send(to_plain(candidate))

    @property
    def opening(self) -> Opening:
        """How the model was opened; waits until it is loaded and has run once.

        Raises:
            BatchRefusedError: if the model does not accept the batch size.
            DensenetDeployError: whatever `open_runner` or a call raises, or WorkerDiedError if the process dies.
        """
        if self._opened is None:
            try:
                self._opened = from_plain(Opening, self.receive())
            except DensenetDeployError as exc:
                self._opened = exc
        if isinstance(self._opened, DensenetDeployError):
            raise self._opened
        return self._opened

    def measure(self, seconds: float) -> RoundTiming:
        """Run the model for about `seconds` after its warm-up calls, and wait until its threads are quiet.

        Raises:
            DensenetDeployError: as `opening`.
        """
        _ = self.opening  # waits until it is loaded
        self.send(seconds)
        timing = from_plain(RoundTiming, self.receive())
        time.sleep(_PAUSE_SECONDS)
        return timing


def main(requests: Iterator[Any]) -> Iterator[Any]:
    """Serve a candidate that `open_runner` opens."""
    return serve_candidate(requests, open_runner)


def serve_candidate(requests: Iterator[Any], opener: Opener) -> Iterator[Any]:
    """Be the process of a candidate: yield how `opener` opened its model, then a timing per request."""
    first = next(requests, None)
    if first is None:
        return  # the parent ended before it asked
    candidate = from_plain(Candidate, first)
    with contextlib.ExitStack() as stack:
        opening, runners = _open(candidate, opener, stack)
        feeds = _noise(runners[0], candidate.batch)
        clock = BackendClock(runners[0])
        calls: list[Call] = [functools.partial(runner.run, feeds) for runner in runners]
        yield to_plain(opening)
        for seconds in requests:
            yield to_plain(_timed(calls, candidate, seconds, clock))


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
        raise BatchRefusedError(candidate.title, why, fix)
    feeds, start = _noise(runner, candidate.batch), time.perf_counter()
    try:
        outputs = runner.run(feeds)
    except FeedError as exc:
        raise BatchRefusedError(candidate.title, f"{why}: {exc.why}", exc.fix) from exc
    seconds = time.perf_counter() - start
    rows = max((len(array) for array in outputs.values() if array.ndim), default=0)
    if rows < candidate.batch:  # its speed would be that of fewer images
        fix = "time it with batch 1, or export it with a dynamic batch"
        raise BatchRefusedError(candidate.title, f"{why}: its outputs have {rows} rows", fix)
    return seconds


def _noise(runner: Runner, batch: int) -> Feeds:
    """Seeded noise; for a model of any image size, of the size in its manifest."""
    spec = runner.inputs[0]
    known = runner.manifest.preprocessing if runner.manifest else Preprocessing()
    usual = (batch, *known.input_shape)
    shape = [batch, *(size or usual[axis] for axis, size in enumerate(spec.shape[1:], start=1))]
    rng = np.random.default_rng(0)
    if spec.dtype == np.uint8:
        return {spec.name: rng.integers(0, 256, shape, np.uint8)}
    return {spec.name: rng.standard_normal(shape, np.float32).astype(spec.dtype)}


def _timed(calls: list[Call], candidate: Candidate, seconds: float, clock: BackendClock) -> RoundTiming:
    clock.calls.clear()
    inside_seconds = None
    if len(calls) > 1:
        timing = offline(calls, seconds)
    elif candidate.fps is not None:
        timing = camera(calls[0], seconds, candidate.fps)
    else:
        timing = single_stream(calls[0], seconds)
        inside_seconds = math.fsum(clock.calls[-len(timing.seconds) :])  # without the warm-up calls
    return replace(timing, peak_memory_bytes=peak_memory_bytes(), inside_seconds=inside_seconds)


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

"""One model in a process of its own, which runs it when told to: `python -m densenet_deploy.bench.contender`.

The waiting threads of a backend spin on the cores for a while, so two models in one process disturb each other. Here
each lives alone and blocks on its standard input until its turn. Both sides speak lines of JSON::

    parent   {"model": "a.onnx", "backend": null, "batch": 1, ...}      once
    child    {"placement": "onnxruntime 1.29 ..."}                      or {"error": ["ModelFileError", ...]}
    parent   0.25                                                       a turn of so many seconds
    child    {"seconds": [0.0151, 0.0149, ...], "peak_memory_bytes": 350000000}

The child finds its modules where the parent does, whatever lies in the working directory. What a backend prints goes to
standard error, so that standard output carries answers only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import numpy as np

from densenet_deploy import errors
from densenet_deploy.errors import BackendError, DensenetDeployError
from densenet_deploy.options import require_range
from densenet_deploy.runtime.batching import fixed_batch
from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner

_WARM_UP_CALLS: Final = 2  # the first calls of a turn find cold caches and sleeping threads
_PAUSE_SECONDS: Final = 0.05  # after a turn, for its threads to stop spinning
_FEWEST_CALLS: Final = 3
_STATUS: Final = Path("/proc/self/status")

Opener = Callable[[Path, str | None, str | None, RunnerOptions], Runner]


@dataclass(frozen=True)
class Contender:
    """What to time: a model file on a backend, with seeded noise of `batch` pictures.

    Attributes:
        model: an ONNX or OpenVINO file, or whatever else `program` opens.
        backend, device, precision, threads: see `open_runner` and `RunnerOptions`; None means their defaults.
        program: the module that the process runs; it calls `main` of this one.
    """

    model: Path
    backend: str | None = None
    batch: int = 1
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    program: str = "densenet_deploy.bench.contender"

    def __post_init__(self) -> None:
        require_range("batch", self.batch, 1, 65536)


@dataclass(frozen=True)
class Turn:
    """The seconds of each timed call of one turn, and the most memory the process has held so far."""

    seconds: tuple[float, ...]
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


class Process:
    """A contender's process, ready for its turns; a context manager."""

    def __init__(self, contender: Contender) -> None:
        """Start the process, which loads the model while the caller goes on."""
        command = [sys.executable, "-P", "-m", contender.program]
        paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._contender = contender
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
        )
        self._tell(asdict(contender) | {"model": str(contender.model)})

    @functools.cached_property
    def placement(self) -> str:
        """Where the model runs, once it is loaded.

        Raises:
            DensenetDeployError: whatever `open_runner` raises, or BackendError if the process dies.
        """
        return str(self._hear()["placement"])

    def turn(self, seconds: float) -> Turn:
        """Let the model run for about `seconds`, warm-up calls not counted, and wait until its threads are quiet.

        Raises:
            DensenetDeployError: whatever `open_runner` or a call raises, or BackendError if the process dies.
        """
        _ = self.placement  # waits until it is loaded
        self._tell(seconds)
        answer = self._hear()
        time.sleep(_PAUSE_SECONDS)
        return Turn(tuple(answer["seconds"]), int(answer["peak_memory_bytes"]))

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, question: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BackendError(self._contender.model, f"its process ended with {code}", "run it alone to see why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            name, subject, why, fix = answer["error"]
            raise getattr(errors, name)(subject, why, fix)
        return answer


def main(opener: Opener = open_runner) -> None:
    """Be a contender's process: answer what stands on standard input, until it ends."""
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError), _answers_only() as stream:
        serve(sys.stdin, stream, opener)


def serve(questions: TextIO, answers: TextIO, opener: Opener = open_runner) -> None:
    """Open the model that the first line of `questions` names and answer each further line with a turn."""
    for answer in _answers(questions, opener):
        print(json.dumps(answer), file=answers, flush=True)


def _answers(questions: TextIO, opener: Opener) -> Iterator[dict[str, object]]:
    facts = json.loads(questions.readline())
    wanted = Contender(**(facts | {"model": Path(facts["model"])}))
    try:
        options = RunnerOptions(threads=wanted.threads, precision=wanted.precision, check_values=False)
        with opener(wanted.model, wanted.backend, wanted.device, options) as runner:
            if fixed_batch(runner) not in (None, wanted.batch):
                fix = f"time it with batch {fixed_batch(runner)}, or export with --batch dynamic"
                raise BackendError(wanted.model, f"takes no batch of {wanted.batch}", fix)
            spec = runner.inputs[0]
            shape = (wanted.batch, *(size or 1 for size in spec.shape[1:]))
            feeds = {spec.name: np.random.default_rng(0).standard_normal(shape, np.float32).astype(spec.dtype)}
            yield {"placement": str(runner.placement)}
            for line in questions:
                seconds = _timed(lambda: runner.run(feeds), json.loads(line))
                yield {"seconds": seconds, "peak_memory_bytes": _peak_memory_bytes()}
    except DensenetDeployError as exc:
        yield {"error": [type(exc).__name__, exc.subject, exc.why, exc.fix]}


def _timed(call: Any, seconds: float) -> list[float]:
    for _ in range(_WARM_UP_CALLS):
        call()
    times: list[float] = []
    while len(times) < _FEWEST_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _peak_memory_bytes() -> int:
    """The largest resident set of this process so far; 0 where the system does not say.

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


def _answers_only() -> TextIO:
    """Return standard output, and let whatever else writes to its descriptor write to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()

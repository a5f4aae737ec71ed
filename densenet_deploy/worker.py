"""Child processes: one protocol for reading untrusted files, building engines and timing models.

Native code may crash, fill the memory, or run for minutes without reacting to signals. In a child process each of these
becomes an exception of the parent. A worker is a module with a generator function `main(requests)`; each value that it
yields is one answer. Both sides exchange lines of JSON over the child's standard streams::

    with Worker("densenet_deploy.bench.candidate") as worker:        def main(requests: Iterator[Any]) -> Iterator[Any]:
        worker.send({"model": "a.onnx"})                                 for request in requests:
        answer = worker.receive()                                            yield {"seconds": [0.0151, 0.0149]}

- What native code prints in the child never mixes with the answers; it is shown on standard error with `-v`.
- An exception of `main` is raised again by `receive`: errors of this package and OSErrors as what they are, exhausted
  memory as ResourceError, others as WorkerRaisedError. A child that ends without an answer is a WorkerDiedError.
- Ctrl-C in a terminal reaches the parent only, which ends its children. A child whose parent is gone ends by itself.
- `call_in_worker` runs a function under limits of memory and time.

This module imports as little as possible, because `build-trt` starts its worker before anything else is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self

from densenet_deploy.errors import BackendError, DensenetDeployError, ResourceError, from_memory_error

log = logging.getLogger(__name__)

_PACKAGES: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is slow
_PROGRAM: Final = (
    "import sys; module, verbose, *sys.path[:] = sys.argv[1:]; del sys.argv[1:]; "
    "from densenet_deploy.worker import run; run(module, bool(verbose))"
)
_SECONDS_TO_CLOSE: Final = 5.0
_SECONDS_AS_ORPHAN: Final = 2.0
_STATM: Final = "/proc/self/statm"
_READ: Final = 65536
_SIGKILL: Final = getattr(signal, "SIGKILL", None)  # Windows has none


class WorkerDiedError(BackendError):
    """The process ended without an answer; `signal` is the number of the signal that ended it, None if none did."""

    def __init__(self, subject: object, why: str, fix: str, number: int | None = None) -> None:
        super().__init__(subject, why, fix)
        self.signal = number


class WorkerRaisedError(BackendError):
    """The worker raised an unexpected exception of the class `name`."""

    def __init__(self, subject: object, why: str, fix: str, name: str = "") -> None:
        super().__init__(subject, why, fix)
        self.name = name


class WorkerMemoryError(ResourceError):
    """Memory ran out under the limits of `call_in_worker`.

    Attributes:
        is_own_limit: whether the limit was that of the call; otherwise a narrower one of the process or the machine.
    """

    def __init__(self, subject: object, why: str, fix: str, *, is_own_limit: bool = False) -> None:
        super().__init__(subject, why, fix)
        self.is_own_limit = is_own_limit


class Limits(NamedTuple):
    """What a call may use beyond what its imports used: address space, CPU time, and time by the clock."""

    memory_bytes: int
    cpu_seconds: int
    clock_seconds: float


class Worker:
    """A child process that runs `main` of a module; a context manager that leaves no process behind."""

    def __init__(
        self,
        module: str,
        *,
        subject: object = None,
        verbose: bool | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process, or take the one that `started_ahead` started.

        Args:
            module: full name of the module.
            subject: the value that errors about the process name; None means the module.
            verbose: whether its log and the prints of native code are shown; None: if INFO is logged here.
            flags: more flags of the interpreter.
            environment: variables beside those of this process.

        Raises:
            OSError: if no process can be started.
        """
        verbose = log.isEnabledFor(logging.INFO) if verbose is None else verbose
        self._subject = module if subject is None else subject
        started = _ahead.pop((module, verbose), None)
        self._process = started or _start(module, verbose, flags, environment)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message that JSON can hold; that the process is gone shows in `receive`."""
        with contextlib.suppress(OSError):
            _write(self._process.stdin, message)

    def receive(self) -> Any:
        """Wait for the next answer.

        Raises:
            DensenetDeployError: the one that `main` raised.
            OSError: the one that `main` raised.
            WorkerRaisedError: if it raised something else.
            WorkerDiedError: if the process ended without an answer.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death(self._process.wait())
        answer = json.loads(line)
        if "answer" in answer:
            return answer["answer"]
        if "error" in answer:
            module, name, *words = answer["error"]
            raise getattr(sys.modules.get(module), name, BackendError)(*words)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        raise WorkerRaisedError(
            self._subject, f"its process raised {answer['raised']}", "run again with -v to see where", answer["raised"]
        )

    def kill(self) -> None:
        """End the process in the middle of its work, without waiting until it is gone."""
        self._process.kill()

    def close(self, *, at_once: bool = False) -> None:
        """End the process: between two requests, or in the middle of its work if `at_once` or if that takes long."""
        if not at_once:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(_SECONDS_TO_CLOSE)
        _end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=exc is not None)

    def _death(self, code: int) -> WorkerDiedError:
        number = None if code >= 0 else -code
        how = f"ended with code {code} and no answer" if number is None else f"crashed with {_signal_name(number)}"
        if number == _SIGKILL:
            how = "was killed, as systems do when memory runs out"
        return WorkerDiedError(self._subject, f"its process {how}", "run again with -v to see its log", number)


class WorkerProgram(NamedTuple):
    """What workers of one kind run: a module, the first message to it, and what the errors of `Worker` name."""

    module: str
    settings: Mapping[str, Any]
    subject: str
    environment: Mapping[str, str] | None = None

    def started(self) -> Worker:
        """Return a process to which the settings were sent.

        Raises:
            OSError: if no process can be started.
        """
        worker = Worker(self.module, subject=self.subject, environment=self.environment)
        worker.send(self.settings)
        return worker


_ahead: Final[dict[tuple[str, bool], subprocess.Popen[bytes]]] = {}


@contextlib.contextmanager
def started_ahead(module: str, *, verbose: bool, flags: Sequence[str] = ()) -> Iterator[None]:
    """Start a process that the next `Worker` of `module` in the block takes; it ends with the block."""
    key = module, verbose
    process = _ahead[key] = _start(module, verbose, flags, None)
    try:
        yield
    finally:
        if _ahead.get(key) is process:
            _end(_ahead.pop(key))


def call_in_worker(
    function: Callable[..., Iterator[Any]],
    arguments: Sequence[Any],
    limits: Limits,
    prepare: Callable[..., None] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Generator[Any]:
    """Run the generator `function` in a child process under `limits`, and yield what it yields.

    Both functions belong to a module and take `arguments`, which JSON can hold. `prepare` imports what `function`
    needs. It runs in the child before the limits begin, and meanwhile in this process, so that a caller that needs the
    same libraries afterwards has waited for both at once. So does `meanwhile`, which runs in this process alone, before
    `prepare`; what it raises ends the child. Where the system has no such limits (Windows), the function runs without.

    Raises:
        WorkerDiedError: if a signal or a limit of time ended it.
        WorkerMemoryError: if memory ran out.
        WorkerRaisedError: if the function raised another exception.
        OSError: if no process can be started.
    """
    worker = Worker(__name__, subject=function.__qualname__, environment={"OMP_NUM_THREADS": "1"})
    try:
        worker.send([_name(function), None if prepare is None else _name(prepare), list(arguments), limits])
        if meanwhile is not None:
            meanwhile()
        if prepare is not None:
            prepare(*arguments)
        try:
            worker.receive()
        except (DensenetDeployError, OSError) as exc:
            log.info("a child process could not begin: %s; continuing without it", exc)
        else:
            yield from _yielded(worker)
    finally:
        worker.close(at_once=True)


def _yielded(worker: Worker) -> Iterator[Any]:
    while True:
        kind, value = worker.receive()
        if kind == "memory":
            raise WorkerMemoryError("memory", "ran out", "close other programs", is_own_limit=value)
        if kind == "end":
            return
        yield value


def _name(function: Callable[..., object]) -> list[str]:
    return [function.__module__, function.__qualname__]


def _start(
    module: str, verbose: bool, flags: Sequence[str], environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """Start a Python that finds its modules where this one does, and not in the working folder."""
    paths = [os.path.abspath(entry) for entry in (*sys.path, _PACKAGES)]  # noqa: PTH100
    return subprocess.Popen(
        [sys.executable, "-P", *flags, "-c", _PROGRAM, module, "verbose" if verbose else "", *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it is doing, and close the pipes to it."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _write(stream: IO[bytes] | None, message: object) -> None:
    assert stream is not None
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def run(module: str, verbose: bool) -> None:
    """Be the child: send what `main` of the module yields or raises. A parent that is gone ends it."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "wb") as stream:
        os.dup2(2, 1)
        if verbose:
            logging.basicConfig(format="%(message)s", level=logging.INFO)
        try:
            for answer in importlib.import_module(module).main(_requests()):
                _write(stream, {"answer": answer})
        except Exception as exc:  # noqa: BLE001 - whatever it is, the parent raises it
            _write(stream, _failure(exc))


def _failure(exc: Exception) -> dict[str, object]:
    error = exc if isinstance(exc, DensenetDeployError) else from_memory_error(exc)
    if error is not None:
        return {"error": [type(error).__module__, type(error).__qualname__, error.subject, error.why, error.fix]}
    if isinstance(exc, OSError) and exc.errno is not None:
        return {"os_error": [exc.errno, exc.strerror]}
    log.info("unexpected", exc_info=exc)
    return {"raised": type(exc).__name__}


def _requests() -> Iterator[Any]:
    """Yield what the parent sends, until it closes its end."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while line := lines.get():
        yield json.loads(line)


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Queue the lines of standard input; at its end, the process has a moment to finish, whatever it is doing."""
    rest = b""
    while chunk := os.read(0, _READ):  # not sys.stdin, whose lock a daemon thread would hold when the process exits
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            lines.put(line)
    lines.put(b"")
    time.sleep(_SECONDS_AS_ORPHAN)
    os._exit(1)


def main(requests: Iterator[Any]) -> Iterator[tuple[str, Any] | None]:
    """Be the worker of `call_in_worker`: prepare, set the limits, answer that it is ready, call the function."""
    for function, prepare, arguments, limits in requests:
        if prepare is not None:
            _named(prepare)(*arguments)
        is_own = _set_limits(Limits(*limits))
        yield None
        try:
            for value in _named(function)(*arguments):
                yield "value", value
        except Exception as exc:
            if from_memory_error(exc) is None:
                raise
            yield "memory", is_own
        else:
            yield "end", None


def _named(name: Sequence[str]) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(name[0]), name[1])
    return function


def _set_limits(limits: Limits) -> bool:
    """Set the limits; return whether the one of memory is narrower than the one that this process already had."""
    try:
        import resource
    except ImportError:  # Windows
        return False

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.clock_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds)
    if not os.path.exists(_STATM):  # macOS does not enforce a limit of address space  # noqa: PTH110
        return False
    with open(_STATM) as file:  # noqa: PTH123
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    return _lower(resource.RLIMIT_AS, mapped + limits.memory_bytes)


def _lower(kind: int, limit: int) -> bool:
    """Lower a limit of this process; one that is already lower stays, and the answer is False."""
    import resource

    soft, hard = resource.getrlimit(kind)
    if soft != resource.RLIM_INFINITY and soft <= limit:
        return False
    resource.setrlimit(kind, (limit, hard))
    return True

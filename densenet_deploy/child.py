"""A function called in a process of its own, with limits that the system keeps.

Native code that reads a hostile file may crash, take all memory, or never come back, and nothing in the process that
called it can catch that. In a child it is an answer like any other. The function is a generator of a module: what it
yields reaches the caller at once as JSON, so that a child that dies was last heard saying what it was about to do::

    parent   {"function": ["densenet_deploy.workflows.examination", "read"], "arguments": [["a.onnx"]], ...}
    child    {"ready": true}             it is prepared, the limits are set
    child    {"said": ["a.onnx", 0]}     and so on, as often as the function yields
    child    {"done": null}              or "memory" where that ran out, or the name of the exception's class

What native code prints goes nowhere, except with -v. Limits count from `ready` on, since what the libraries need is not
the file's fault. Where the system knows no such limits (Windows), a crash is still an answer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from densenet_deploy.errors import from_memory_error
from densenet_deploy.processes import answers, end, say, start

log = logging.getLogger(__name__)

_STATM: Final = Path("/proc/self/statm")
_MEMORY: Final = "memory"


@dataclass(frozen=True)
class Limits:
    """What a call may take beyond what its imports took: address space, time on a CPU, and time by the clock."""

    memory_bytes: int
    cpu_seconds: int
    clock_seconds: float


class ChildDiedError(Exception):
    """The child ended without an answer, by the signal `number` (None: it ended by itself)."""

    def __init__(self, number: int | None) -> None:
        super().__init__(number)
        self.number = number


class ChildMemoryError(Exception):
    """Memory ran out in the child; `was_ours`: under the limit that it was given, not under a narrower one."""

    def __init__(self, *, was_ours: bool) -> None:
        super().__init__(was_ours)
        self.was_ours = was_ours


class ChildRaisedError(Exception):
    """The function raised an exception of the class `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def call_in_child(
    function: Callable[..., Iterator[Any]],
    arguments: Sequence[Any],
    limits: Limits,
    prepare: Callable[..., None] | None = None,
) -> Generator[Any]:
    """Run the generator `function` in a child, and yield what it yields.

    Both are functions of a module, and take `arguments`, which JSON can hold. `prepare` imports what `function` needs;
    it is called in the child before the limits hold and in this process meanwhile, so that whoever needs the same
    libraries afterwards has waited for both at once.

    Raises:
        ChildDiedError: if a signal or a limit of time ended it.
        ChildMemoryError: if memory ran out.
        ChildRaisedError: if the function raised.
        OSError: if no process can be had.
    """
    request = {
        "function": _name(function),
        "prepare": None if prepare is None else _name(prepare),
        "arguments": list(arguments),
        "limits": asdict(limits),
    }
    verbose = log.isEnabledFor(logging.INFO)
    process = start("densenet_deploy.child", verbose=verbose, environment={"OMP_NUM_THREADS": "1"})
    try:
        with contextlib.suppress(BrokenPipeError):  # a child that is gone shows when it is heard
            say(process.stdin, request)
        if prepare is not None:
            prepare(*arguments)
        yield from _said(process)
    finally:
        end(process)


def _name(function: Callable[..., object]) -> list[str]:
    return [function.__module__, function.__qualname__]


def _named(name: Sequence[str]) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(name[0]), name[1])
    return function


def _said(process: subprocess.Popen[bytes]) -> Iterator[Any]:
    assert process.stdout is not None
    is_ready = False
    for line in process.stdout:
        if not line.endswith(b"\n"):
            break
        answer = json.loads(line)
        if "said" in answer:
            yield answer["said"]
        elif "ready" in answer:
            is_ready = True
        else:
            _require_done(answer)
            return
    code = process.wait()
    if is_ready:
        raise ChildDiedError(-code if code < 0 else None)
    log.info("a child ended with %s before it could begin; going on without it", code)


def _require_done(answer: dict[str, Any]) -> None:
    if answer["done"] == _MEMORY:
        raise ChildMemoryError(was_ours=answer["ours"])
    if answer["done"] is not None:
        raise ChildRaisedError(answer["done"])


def main() -> None:
    """Be the child."""
    with answers() as stream:
        _serve(json.loads(sys.stdin.buffer.readline()), stream)


def _serve(request: dict[str, Any], stream: BinaryIO) -> None:
    """Answer the parent: prepare, set the limits, call the function."""
    arguments, function = request["arguments"], _named(request["function"])
    if request["prepare"] is not None:
        _named(request["prepare"])(*arguments)
    is_ours = _limit(Limits(**request["limits"]))
    say(stream, {"ready": True})
    try:
        for said in function(*arguments):
            say(stream, {"said": said})
    except Exception as exc:  # noqa: BLE001 - whatever it is, it goes to the parent
        say(stream, {"done": _MEMORY if from_memory_error(exc) else type(exc).__name__, "ours": is_ours})
        return
    say(stream, {"done": None})


def _limit(limits: Limits) -> bool:
    """Set the limits; return whether the one of memory is narrower than what this process already was under."""
    if sys.platform == "win32":
        return False
    import resource

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.clock_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds)
    if not _STATM.exists():  # macOS keeps no limit of address space
        return False
    mapped = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    return _lower(resource.RLIMIT_AS, mapped + limits.memory_bytes)


def _lower(kind: int, limit: int) -> bool:
    """Lower a limit of this process to `limit`; one that is lower already stays, and the answer is no."""
    import resource

    soft, hard = resource.getrlimit(kind)
    if soft != resource.RLIM_INFINITY and soft <= limit:
        return False
    resource.setrlimit(kind, (limit, hard))
    return True

"""Functions that `tests/test_worker.py` runs in child processes, which import this module by its name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def count(to: int) -> Iterator[int]:
    yield from range(to)


def print_natively(_to: int) -> Iterator[str]:
    os.write(1, b"{not JSON\n")
    os.write(2, b"a warning of a library\n")
    print("printed")
    yield "value"


def read_nothing() -> Iterator[int]:
    """Read the memory at address 0, as native parsers do."""
    yield 1
    ctypes.string_at(0)


def abort() -> Iterator[int]:
    yield 1
    os.abort()


def leave() -> Iterator[int]:
    yield 1
    os._exit(7)


def be_killed() -> Iterator[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield 1


def take(megabytes: int) -> Iterator[int]:
    block = bytearray(megabytes * 2**20)
    yield len(block)


def take_and_wrap(megabytes: int) -> Iterator[int]:
    """Hide what happened behind another error, as libraries do."""
    try:
        yield from take(megabytes)
    except MemoryError as exc:
        raise ValueError("not a model") from exc


def compute() -> Iterator[int]:
    yield 1
    while True:
        pass


def wait() -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)


def report_itself() -> Iterator[dict[str, object]]:
    """Tell what a child inherits and what its limits are."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    yield {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "leads its session": os.getsid(0) == os.getpid(),
        "blocked signals": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "SIGALRM kills": signal.getsignal(signal.SIGALRM) == signal.SIG_DFL,
        "clock seconds": signal.getitimer(signal.ITIMER_REAL)[0],
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "cpu seconds": resource.getrlimit(resource.RLIMIT_CPU)[0],
        "cpu seconds used": used.ru_utime + used.ru_stime,
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
        "memory used": int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize(),
    }


def hide_limits(parent: int, _megabytes: int) -> None:
    """Make the child a system without limits."""
    if os.getpid() != parent:
        sys.modules["resource"] = None  # type: ignore[assignment]


def take_after(_parent: int, megabytes: int) -> Iterator[int]:
    yield from take(megabytes)
    raise MemoryError


def fail() -> Iterator[int]:
    yield 1
    raise KeyError("nothing")


def leave_a_core(folder: str) -> Iterator[int]:
    os.chdir(folder)
    yield 1
    os.abort()


def note_the_process(path: str) -> None:
    """Prepare, and note the process."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


def note_nothing(_path: str) -> Iterator[int]:
    yield os.getpid()


def end_the_child(parent: int) -> None:
    """Exit while preparing, in the child only."""
    if os.getpid() != parent:
        sys.exit("no library")


def fail_in_the_child(parent: int) -> None:
    """Raise while preparing, in the child only."""
    if os.getpid() != parent:
        raise MemoryError


def never_begun(_parent: int) -> Iterator[int]:
    yield 1

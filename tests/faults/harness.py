"""The contract of every failure, checked in one place, so that a case of the list of bad inputs reads like a row.

A command that fails prints one line `error: <what>: <path or value>: <why>; <what to do>` on stderr (with `--json` one
object) and nothing on stdout, ends within 30 s of CPU time with its documented exit code, and leaves every file as it
was.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from densenet_deploy.cli import main

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"error: [^:]+: .+?: .+; .+", re.DOTALL)
LONGEST_SECONDS = 30


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, both streams, CPU seconds and the most memory it held (0: not measured)."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int = 0


def require_contract(ended: Ended, code: int, *says: str) -> str:
    """Check a failure against the contract and return its message; `says` are parts that it must hold."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.seconds < LONGEST_SECONDS
    line = ended.err.removesuffix("\n")
    assert "\n" not in line, line
    assert line.isprintable(), line
    assert LINE.fullmatch(line), line
    for part in says:
        assert part in line, line
    return line


def seen(folder: Path) -> dict[str, object]:
    """Everything below `folder`: bytes of files, targets of links, None for folders."""
    return {os.fsdecode(path.relative_to(folder)): _content(path) for path in folder.rglob("*")}


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    return path.read_bytes() if path.is_file() else None


@dataclass
class Commands:
    """Runs commands on bad input below `folder`, in this process or in one of their own, and checks the contract."""

    folder: Path
    streams: pytest.CaptureFixture[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def refused(self, *words: object, code: int = 3, says: tuple[str, ...] | str = ()) -> str:
        """Run in this process and return the message; its JSON form is tested in `tests/cli/test_contract.py`."""
        parts = (says,) if isinstance(says, str) else says
        before = seen(self.folder)
        line = require_contract(self._run([*map(str, words)]), code, *parts)
        assert seen(self.folder) == before, "nothing may change on disk"
        return line

    def answer(self, *words: object) -> dict[str, object]:
        """Run a command that must succeed and return its JSON object."""
        ended = self._run([*map(str, words), "--json"])
        assert ended.code == 0, ended.err
        found: dict[str, object] = json.loads(ended.out)
        return found

    def printed(self, *words: object) -> Ended:
        """Run a command that must succeed and return what it printed for people."""
        ended = self._run([*map(str, words)])
        assert ended.code == 0, ended.err
        return ended

    def _run(self, words: list[str]) -> Ended:
        self.streams.readouterr()
        start = time.process_time()
        code = main(words)
        seconds = time.process_time() - start
        captured = self.streams.readouterr()
        return Ended(code, captured.out, captured.err, seconds)


def arguments(*words: object) -> list[str]:
    """The command line of a process of its own."""
    return [
        sys.executable,
        "-m",
        "densenet_deploy",
        *map(os.fspath, (w if isinstance(w, Path) else str(w) for w in words)),
    ]


def run_process(command: list[str], folder: Path, timeout: float | None = 300, **environment: str) -> Ended:
    """Run `command` in `folder` and wait for it; its peak memory is its own and that of children it waited for."""
    start = _seconds_of_children()
    process = start_process(command, folder, **environment)
    out, err = process.communicate(timeout=timeout)
    return Ended(process.returncode, out, err, _seconds_of_children() - start)


def _seconds_of_children() -> float:
    """CPU seconds of the children that were waited for: wall time would judge what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_process(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `command` in `folder` with both streams as pipes, in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped_at(mark: str, number: int, *words: object, folder: Path, **environment: str) -> Ended:
    """Send a signal to a command, and to its children, once its log holds `mark`; the seconds are those until its end.

    Its error is the last line on stderr: `-v`, which logs the stages, prints a traceback before it.
    """
    process = start_process(arguments(*words, "-v"), folder, **environment)
    assert process.stderr is not None
    log = []
    for line in process.stderr:
        log.append(line)
        if line.startswith(mark):
            break
    assert log[-1].startswith(mark), "".join(log)
    os.killpg(process.pid, number)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, out, err.splitlines(keepends=True)[-1], time.monotonic() - start)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child is left in its group
    return ended


def peak_bytes_of(command: list[str], folder: Path) -> Ended:
    """Run `command` by a small Python that asks the kernel for the peak memory of its only child."""
    ask = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    ask += "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    ended = run_process([sys.executable, "-c", ask, *command], folder)
    *out, last = ended.out.splitlines()
    code, kilobytes = map(int, last.split())
    return Ended(code, "\n".join(out), ended.err, ended.seconds, kilobytes * 1024)

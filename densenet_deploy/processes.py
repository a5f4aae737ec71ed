"""Children of ours: how one is started, how it is ended, and how its answers stay apart from what native code prints.

A child is a module with a function `main`. Parent and child speak lines of JSON over the child's standard streams::

    process = start("densenet_deploy.child", verbose=False)          def main() -> None:
    say(process.stdin, {"function": [...], ...})                         with answers() as stream:
    answer = json.loads(process.stdout.readline())                           say(stream, {"ready": True})

This module imports as little as it can: a child that builds engines is started before anything else is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO, BinaryIO

_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib costs time


def start(
    module: str, *, verbose: bool, flags: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `main()` of `module` in a Python of its own, with pipes for its standard input and output.

    It finds its modules where this process does, whatever lies in the working directory, and a Ctrl-C of the terminal
    does not reach it: that is the parent's to answer.

    Args:
        module: the module's full name.
        verbose: whether what native code prints there is shown, on standard error.
        flags: more flags of the interpreter.
        environment: variables of the environment beside those of this process.

    Raises:
        OSError: if no process can be had.
    """
    paths = [os.path.abspath(entry) for entry in (*sys.path, _PACKAGES)]  # noqa: PTH100
    program = f"import sys; sys.path[:], sys.argv[1:] = sys.argv[1:], []; from {module} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", *flags, "-c", program, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )


def say(stream: IO[bytes] | None, message: object) -> None:
    """Write a line of JSON; raises BrokenPipeError if nobody reads it."""
    assert stream is not None
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a child, whatever it is doing, and close the pipes to it."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


@contextlib.contextmanager
def answers() -> Iterator[BinaryIO]:
    """In a child: standard output for answers alone; what else is written to it goes to standard error.

    A parent that is gone ends the block.
    """
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "wb") as stream:
        os.dup2(2, 1)
        yield stream

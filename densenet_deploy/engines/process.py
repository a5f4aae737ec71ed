"""The process that a `Builder` talks to; the command line starts it before it knows what will be built.

A builder needs Python, our modules and TensorRT, which takes as long as the command line needs to understand its words:
so the process is started before these are looked at, and waits. This module imports as little as it can.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

_ahead: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def started_ahead(*, verbose: bool) -> Iterator[None]:
    """Start a process that the next `Builder` of the block takes; it ends with the block.

    Args:
        verbose: whether what native code prints there is shown.
    """
    process = _start(verbose=verbose)
    _ahead.append(process)
    try:
        yield
    finally:
        if process in _ahead:
            _ahead.remove(process)
            end(process)


def take(*, verbose: bool) -> subprocess.Popen[bytes]:
    """Return the process that was started ahead, or a new one."""
    return _ahead.pop() if _ahead else _start(verbose=verbose)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process, whatever it is doing."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _start(*, verbose: bool) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(os.path.abspath(entry) for entry in (*sys.path, _PACKAGES))  # noqa: PTH100
    return subprocess.Popen(
        # -S: all that `site` would find is in the path already, and costs time and memory to be found again
        [sys.executable, "-P", "-S", "-m", "densenet_deploy.engines.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,  # a Ctrl-C of the terminal is the parent's to answer
    )

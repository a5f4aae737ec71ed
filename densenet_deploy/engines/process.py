"""The process that a `Builder` talks to; the command line starts it before it knows what will be built.

A builder needs Python, our modules and TensorRT, which takes as long as the command line needs to understand its words:
so the process is started before these are looked at, and waits.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from densenet_deploy.processes import end, start

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


def _start(*, verbose: bool) -> subprocess.Popen[bytes]:
    # -S: all that `site` would find is in the path already, and costs time and memory to be found again
    return start("densenet_deploy.engines.worker", verbose=verbose, flags=("-S",))

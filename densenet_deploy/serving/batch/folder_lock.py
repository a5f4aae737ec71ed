"""Keep a second driver of a batch job out of a folder: a lock on the file `_plan.lock`, which ends with the process.

The system drops the lock when its holder ends, however it ends, so that a file that was left behind bars nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from densenet_deploy.artifacts import folder_made, os_errors_about
from densenet_deploy.errors import OutputExistsError, printable

LOCK: Final = "_plan.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[tuple[str, ...]]:
    """Hold `folder`, which is made, during the block; yields the remark that it cannot be locked, or nothing.

    Raises:
        OutputExistsError: if another process holds it.
        ResourceError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with os_errors_about(folder):
            stack.enter_context(folder_made(folder))
            descriptor, notes = _opened(folder)
            stack.callback(os.close, descriptor)
            stack.callback((folder / LOCK).unlink, missing_ok=True)  # before it is closed: it is still ours
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield notes


def _opened(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Return the descriptor of the locked file, and a remark if it could not be locked."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # a holder that ends may have removed it
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            continue
        try:
            why = _refusal(descriptor)
            if why is None and not _is_at(descriptor, path):  # its holder removed it after we opened it
                os.close(descriptor)
                continue
        except BlockingIOError as exc:
            holder = printable(os.read(descriptor, 200).decode(errors="replace").strip()) or "another process"
            os.close(descriptor)
            fix = "wait until it has ended, or choose another -o"
            raise OutputExistsError(folder, f"is being written by {holder}", fix) from exc
        if why is None:
            return descriptor, ()
        return descriptor, (f"{printable(folder)} cannot be locked ({why}): a second job there would not be noticed",)


def _refusal(descriptor: int) -> str | None:
    """Lock a file; return None, or why this system or its disk has no locks. Another's lock is a BlockingIOError."""
    try:
        import fcntl
    except ImportError:  # Windows
        return "this system has no flock"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(*exc.args) from exc
        return (exc.strerror or str(exc)).lower()
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False

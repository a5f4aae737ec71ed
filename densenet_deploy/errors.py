"""The errors that this library raises on purpose, and the exit code of a command that ends with each.

::

    DensenetDeployError            1  base: catch this one
    ├── UsageError                 2  an invalid option, name or value
    │   └── UnknownNameError       2  ... an unknown name, with the nearest known one
    ├── InputError                 3  bad or refused input
    │   ├── CheckpointError        3  weights that cannot be read or do not fit
    │   ├── ModelFileError         3  an ONNX, IR or engine file that cannot be used
    │   ├── ManifestError          3  facts in an artifact that cannot be read
    │   ├── ImageError             3  an image that cannot be decoded
    │   ├── DataError              3  a folder, array or label file that cannot be used
    │   ├── FeedError              3  an array that the model does not accept
    │   └── OutputExistsError      3  the output path holds something else
    ├── GateError                  4  parity, accuracy, precision or speed missed its gate
    ├── BackendError               5  a backend cannot do what was asked
    │   ├── MissingPackageError    5  ... because a package is not installed
    │   ├── DeviceError            5  ... because a device is missing or would not be used
    │   └── RunnerStateError       5  ... because the runner was closed or opened before a fork
    └── ResourceError              6  disk, memory, permission or network

Every error says what failed, with which value, why, and what to do next.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Final

_LONGEST_VALUE = 200


def printable(value: object, limit: int = _LONGEST_VALUE) -> str:
    r"""Return `value` as one line of at most `limit` characters, control characters escaped.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    text = str(value)
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def counted(count: int, noun: str) -> str:
    """Return how many there are of something, in words.

    >>> counted(1, "thread"), counted(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def is_valid_argument(text: str) -> bool:
    r"""Whether `text` can be a path or an argument: some characters of a string cannot be encoded as bytes.

    >>> is_valid_argument("a.onnx"), is_valid_argument("a\0b")
    (True, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False


class DensenetDeployError(Exception):
    """Base of all errors: what failed (`what`), with which value (`subject`), `why`, and what to do (`fix`).

    >>> try:
    ...     densenet_deploy.load("122")
    ... except DensenetDeployError as error:
    ...     print(error.exit_code, error.subject, error.why)
    2 122 unknown weights
    """

    exit_code: ClassVar[int] = 1
    what: ClassVar[str] = "internal error"

    def __init__(self, subject: object, why: str, fix: str) -> None:
        super().__init__(subject, why, fix)
        self.subject = printable(subject) or "''"
        self.why = printable(why, 600)
        self.fix = printable(fix, 600)

    def __str__(self) -> str:
        return f"{self.what}: {self.subject}: {self.why}; {self.fix}"


class UsageError(DensenetDeployError):
    """An invalid option, name or value."""

    exit_code = 2
    what = "usage"


class UnknownNameError(UsageError):
    """An unknown name; the nearest known one is suggested."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Build the error for `name`, which is not a known `kind`, with the nearest of `known`."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        listed = ", ".join(names) or "none"
        hint = f"did you mean {near[0]!r}? known: {listed}" if near else f"use one of: {listed}"
        return cls(name, f"unknown {kind}", hint)


class InputError(DensenetDeployError):
    """Bad or refused input."""

    exit_code = 3
    what = "input"


class CheckpointError(InputError):
    """Weights that cannot be read or do not fit the model."""

    what = "checkpoint"


class ModelFileError(InputError):
    """An ONNX, OpenVINO or engine file that cannot be used."""

    what = "model"


class ManifestError(InputError):
    """Facts inside an artifact that cannot be read."""

    what = "metadata"


class ImageError(InputError):
    """An image that cannot be decoded."""

    what = "image"


class DataError(InputError):
    """A folder, array or label file that cannot be used."""

    what = "data"


class FeedError(InputError):
    """An array that the model does not accept."""

    what = "feed"


class OutputExistsError(InputError):
    """The output path holds something else."""

    what = "output"


class GateError(DensenetDeployError):
    """Parity, accuracy, precision or speed missed its gate."""

    exit_code = 4
    what = "gate"


class BackendError(DensenetDeployError):
    """A backend cannot do what was asked."""

    exit_code = 5
    what = "backend"


class MissingPackageError(BackendError):
    """A required package is not installed."""

    what = "package"

    @classmethod
    def of(cls, package: str, extra: str) -> MissingPackageError:
        """Build the error for `package`, which the extra `extra` installs."""
        return cls(package, "is not installed", f"run: {install_command(extra)}")


class DeviceError(BackendError):
    """A device is missing, or the backend would silently use another."""

    what = "device"


class RunnerStateError(BackendError):
    """The runner was closed, or was opened by a process that forked this one."""

    what = "runner"


class ResourceError(DensenetDeployError):
    """Disk, memory, permission or network."""

    exit_code = 6
    what = "resource"


def install_command(extra: str) -> str:
    """Return the command that installs `extra`: uv's in a clone of the repository, pip's elsewhere.

    uv keeps what is installed, and leaves out the development group, which excludes the extra `onnxruntime`. pip finds
    this package installed, and so needs no index for it.
    """
    try:
        is_clone = 'name = "densenet-deploy"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    except OSError:
        is_clone = False
    if is_clone:
        return f"uv sync --inexact --no-dev --extra {extra}"
    return f"pip install 'densenet-deploy[{extra}]'"


_RESOURCE_FIXES = {
    errno.ENOSPC: "free some space or choose another folder with -o",
    errno.EDQUOT: "free some space or choose another folder with -o",
    errno.EROFS: "choose a writable folder with -o",
    errno.EACCES: "check the permissions or choose another place",
    errno.EPERM: "check the permissions or choose another place",
    errno.ENOMEM: "close other programs or use a smaller batch",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


_MEMORY_WORDS: Final = (
    "failed to map segment",
    "cannot allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "bad allocation",
)


def from_memory_error(exc: BaseException) -> ResourceError | None:
    """Return the error if memory ran out, which native libraries report in errors of any class; else None.

    The cause of `exc` is examined too.

    >>> from_memory_error(ImportError("libtorch.so: failed to map segment from shared object")).exit_code
    6
    """
    if exc.__cause__ is not None and (found := from_memory_error(exc.__cause__)) is not None:
        return found
    text = str(exc).lower()
    if not isinstance(exc, MemoryError) and not any(words in text for words in _MEMORY_WORDS):
        return None
    return ResourceError(
        "memory", "ran out", "close other programs, raise the limit (ulimit -v), or use a smaller batch"
    )


def from_os_error(exc: OSError, subject: object) -> DensenetDeployError:
    """Map an operating-system error about `subject` to one of ours, with what to do."""
    why = (exc.strerror or str(exc)).lower()
    if exc.errno in _RESOURCE_FIXES:
        return ResourceError(subject, why, _RESOURCE_FIXES[exc.errno])
    if isinstance(exc, FileNotFoundError):
        return InputError(subject, "no such file or folder", "check the path")
    if isinstance(exc, (FileExistsError, IsADirectoryError, NotADirectoryError)):
        return InputError(subject, why, "check the path")
    if exc.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
        return InputError(subject, why, "choose another path")
    return ResourceError(subject, why, "check the disk and try again")

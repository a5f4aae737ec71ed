"""Everything this library raises on purpose, and the exit code each ends a command with.

::

    DensenetDeployError            1  base: catch this one
    ├── UsageError                 2  an option, name or number that cannot be meant
    │   └── UnknownNameError       2  ... with the nearest known name
    ├── InputError                 3  bad or refused input
    │   ├── CheckpointError        3  weights that cannot be read or do not fit
    │   ├── ModelFileError         3  an ONNX, IR or engine file that cannot be used
    │   ├── ManifestError          3  facts in an artifact that cannot be read
    │   ├── ImageError             3  an image that cannot be decoded
    │   ├── DataError              3  a folder, array or label file that cannot be used
    │   ├── FeedError              3  an array that is not what the model takes
    │   └── OutputExistsError      3  something else stands where the result should go
    ├── GateError                  4  parity, accuracy, precision or speed missed its gate
    ├── BackendError               5  a backend cannot do what was asked
    │   ├── MissingPackageError    5  ... because a package is not installed
    │   ├── DeviceError            5  ... because a device is missing or was not used
    │   └── RunnerStateError       5  ... because the runner was closed or crossed a fork
    └── ResourceError              6  disk, memory, permission or network

Every error finishes its sentence: what failed, with which value, why, and what to do next.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
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


def is_passable(text: str) -> bool:
    r"""Whether a system can be given `text`, as a path or an argument: a string may hold characters that have no bytes.

    >>> is_passable("a.onnx"), is_passable("a\0b")
    (True, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


class DensenetDeployError(Exception):
    """What failed (`what`), on which value (`subject`), `why`, and what to do (`fix`)."""

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
    """An option, name or number that cannot be meant."""

    exit_code = 2
    what = "usage"


class UnknownNameError(UsageError):
    """A name that is none of the known ones; the nearest is suggested."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Build the error for `name`, which is no `kind`, naming the nearest of `known`."""
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
    """An array that is not what the model takes."""

    what = "feed"


class OutputExistsError(InputError):
    """Something else stands where the result should go."""

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
    """A package that the work needs is not installed."""

    what = "package"

    @classmethod
    def of(cls, package: str, extra: str) -> MissingPackageError:
        """Build the error for `package`, which the install extra `extra` brings."""
        return cls(package, "is not installed", f"run: pip install 'densenet-deploy[{extra}]'")


class DeviceError(BackendError):
    """A device is missing, or the backend would silently use another."""

    what = "device"


class RunnerStateError(BackendError):
    """The runner was closed, or was opened by the parent of this process."""

    what = "runner"


class ResourceError(DensenetDeployError):
    """Disk, memory, permission or network."""

    exit_code = 6
    what = "resource"


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
    """Return the error for memory that ran out; native libraries say so in errors of every class. None for others.

    What an exception was raised from counts too.

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
    """Map an operating-system error on `subject` to the error a user can act on."""
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

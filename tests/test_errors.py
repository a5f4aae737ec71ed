"""The error tree, the one line each error is, and how the operating system's errors become ours."""

from __future__ import annotations

import errno
import inspect
import os
import pickle
import re

import pytest

from densenet_deploy import errors
from densenet_deploy.errors import (
    DensenetDeployError,
    InputError,
    MissingPackageError,
    ResourceError,
    UnknownNameError,
    from_memory_error,
    from_os_error,
    printable,
)


def _subclasses(kind: type[DensenetDeployError]) -> list[type[DensenetDeployError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in _subclasses(sub))]


KINDS = [kind for kind in _subclasses(DensenetDeployError) if kind.__module__ == errors.__name__]


def test_the_docstring_draws_the_tree_and_the_exit_codes():
    drawn = re.findall(r"^([│├└─ ]*)(\w+Error) +(\d)", str(errors.__doc__), re.MULTILINE)
    parents: dict[int, str] = {}
    tree = []
    for bars, name, code in drawn:
        depth = len(bars) // 4
        parents[depth] = name
        tree.append((parents.get(depth - 1, "Exception"), name, int(code)))
    assert tree == [(kind.__mro__[1].__name__, kind.__name__, kind.exit_code) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_says_what_which_why_and_what_to_do(kind):
    message = str(kind("model.onnx", "is empty", "export it again"))
    assert message == f"{kind.what}: model.onnx: is empty; export it again"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("a\nb", "is\x00odd", "fix it")))
    assert type(error) is kind
    assert str(error) == str(kind("a\nb", "is\x00odd", "fix it"))


HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "bell\a and escape \x1b[31m",
    "separators \u2028 and \u2029",
    "right to left \u202e",
    os.fsdecode(b"odd \xff\xfe bytes"),
    "x" * 5_000_000,
    "\n" * 5_000_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_message_is_one_short_printable_line(text):
    message = str(InputError(text, text, text))
    assert message.isprintable()
    assert len(message.encode()) < 6000  # 200 + 600 + 600 characters of at most 4 bytes


@pytest.mark.parametrize("limit", [10, 200])
@pytest.mark.parametrize("text", ["x" * 300, "\n" * 300, "\udc80" * 300, "é" * 9 + "\n"])
def test_the_limit_holds_after_escaping(text, limit):
    assert len(printable(text, limit)) <= limit


def test_short_text_is_unchanged():
    assert printable("Katze 🐈, naïve", 15) == "Katze 🐈, naïve"


def test_what_was_cut_ends_in_an_ellipsis():
    assert printable("abcdef", 5) == "abcd…"


def test_the_nearest_name_is_suggested():
    error = UnknownNameError.among("variant", "112", ["121", "169", "cifar-40-12"])
    assert "unknown variant" in error.why
    assert error.fix == "did you mean '121'? known: 121, 169, cifar-40-12"


def test_nothing_near_lists_all_names():
    assert UnknownNameError.among("stem", "zzz", ["imagenet", "cifar"]).fix == "use one of: cifar, imagenet"
    assert UnknownNameError.among("stem", "zzz", []).fix == "use one of: none"


def test_a_missing_package_names_the_command_for_a_clone():
    error = MissingPackageError.of("openvino", "openvino")
    assert (error.exit_code, error.subject) == (5, "openvino")
    assert error.fix == "run: uv sync --inexact --no-dev --extra openvino"


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, ResourceError, "free some space"),
        (errno.EDQUOT, ResourceError, "free some space"),
        (errno.EROFS, ResourceError, "writable folder"),
        (errno.EACCES, ResourceError, "permissions"),
        (errno.EPERM, ResourceError, "permissions"),
        (errno.ENOMEM, ResourceError, "batch"),
        (errno.EMFILE, ResourceError, "ulimit"),
        (errno.EIO, ResourceError, "check the disk"),
        (errno.ENOENT, InputError, "check the path"),
        (errno.EISDIR, InputError, "check the path"),
        (errno.ENOTDIR, InputError, "check the path"),
        (errno.EEXIST, InputError, "check the path"),
        (errno.ENAMETOOLONG, InputError, "another path"),
        (errno.ELOOP, InputError, "another path"),
    ],
)
def test_operating_system_errors_become_ours(number, kind, hint):
    error = from_os_error(OSError(number, os.strerror(number)), "some/file")
    assert type(error) is kind
    assert error.subject == "some/file"
    assert hint in error.fix


def test_an_operating_system_error_without_a_number_is_a_resource():
    assert "odd failure" in from_os_error(OSError("odd failure"), "file").why


def test_every_error_is_documented():
    assert all(inspect.getdoc(kind) for kind in KINDS)


@pytest.mark.parametrize(
    "exc",
    [
        MemoryError(),
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
def test_memory_that_ran_out_is_a_resource_error_whoever_says_so(exc):
    error = from_memory_error(exc)
    assert error is not None
    assert error.exit_code == 6


def test_another_failure_is_not_about_memory():
    assert from_memory_error(ImportError("No module named x")) is None

"""How a command ends: its report on stdout and notes on stderr, or one line of error; always an exit code.

Nothing here needs Typer, so that a failure to import it is reported like any other.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from densenet_deploy.cli import Stopped
from densenet_deploy.errors import DensenetDeployError, UsageError, from_memory_error, from_os_error, printable

if TYPE_CHECKING:
    from densenet_deploy.reports import Report

PROGRAM: Final = "densenet-deploy"
SCHEMA: Final = 1

_VERBOSE: Final = re.compile(r"--verbose|-q*v[qv]*")


@dataclass(frozen=True)
class FailedGate:
    """What a command returns to have its report printed and still fail."""

    report: Report
    failure: DensenetDeployError


@dataclass(frozen=True)
class Printing:
    """How results and progress are printed."""

    as_json: bool = False
    verbose: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Answer:
    """The report of a command; `failure` is set where the report is worth reading although a gate failed."""

    report: Report
    printing: Printing
    failure: DensenetDeployError | None = None


def replace_closed_streams() -> None:
    """Discard what is written to a closed stream, and escape what a stream cannot encode."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_answer(answer: Answer, words: Sequence[str]) -> int:
    """Print the report of the command line `words` and return exit code 0.

    Raises:
        GateError: if the command failed in spite of its report.
    """
    from densenet_deploy.notebook import LONGEST_LINE

    report, printing = answer.report, answer.printing
    if not printing.quiet and not (printing.as_json and answer.failure):  # stderr then holds the error object alone
        for note in report.notes:
            print(f"note: {printable(note, LONGEST_LINE)}", file=sys.stderr)
    if printing.as_json:
        text = json.dumps({"schema": SCHEMA, **report.to_json(), "argv": [PROGRAM, *words]}, allow_nan=False)
    else:  # files carry names and labels, in which a terminal must not obey control characters
        text = "\n".join(printable(line, LONGEST_LINE) for line in report.to_text().split("\n"))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the interpreter's last flush
    if answer.failure is not None:
        raise answer.failure
    return 0


def is_verbose(words: Sequence[str]) -> bool:
    """Whether -v is among the words: by itself, written out, or together with -q."""
    return any(_VERBOSE.fullmatch(word) for word in words)


def fail(exc: BaseException, words: Sequence[str]) -> int:
    """Print `exc` on stderr, as one line or with --json as one object, and return the exit code."""
    code, message, error = _judge(exc)
    with contextlib.suppress(OSError):  # stderr itself may be full or gone: the exit code still tells
        if is_verbose(words):
            traceback.print_exception(exc, file=sys.stderr)
        as_json = json.dumps({"error": _facts(code, message, error)})
        print(as_json if "--json" in words else f"error: {message}", file=sys.stderr, flush=True)
    return code


def _judge(exc: BaseException) -> tuple[int, str, DensenetDeployError | None]:
    """Return exit code, message, and the typed error if it is one of ours."""
    if isinstance(exc, Stopped):
        return (
            exc.exit_code,
            "command: stopped by a signal: nothing unfinished was kept; run it again, with --resume if it has that",
            None,
        )
    error = _typed(exc)
    if error is not None:
        return error.exit_code, str(error), error
    where = "run again with -v and report the traceback"
    return 1, f"internal error: {type(exc).__name__}: {printable(exc)}; {where}", None


def _typed(exc: BaseException) -> DensenetDeployError | None:
    if isinstance(exc, DensenetDeployError):
        return exc
    if (no_memory := from_memory_error(exc)) is not None:
        return no_memory
    if isinstance(exc, OSError):
        return from_os_error(exc, exc.filename or "operating system")
    if hasattr(exc, "format_message") and getattr(exc, "exit_code", None) == 2:
        return _usage(exc)
    return None


def _usage(exc: BaseException) -> UsageError:
    """Return the error for one of Typer's: its class is private to Typer, but its interface is Click's."""
    message = " ".join(str(exc.format_message()).split()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(exc, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    return UsageError(path, message, f"see {path} --help")


def _facts(code: int, message: str, error: DensenetDeployError | None) -> dict[str, object]:
    facts: dict[str, object] = {"exit_code": code, "message": message}
    if error is not None:
        facts |= {"kind": type(error).__name__, "subject": error.subject, "why": error.why, "fix": error.fix}
    return facts

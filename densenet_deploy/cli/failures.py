"""Every way a command can end badly: its exit code and its one line."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from densenet_deploy.cli.stopping import Stopped
from densenet_deploy.errors import DensenetDeployError, UsageError, from_memory_error, from_os_error, printable

_VERBOSE: Final = re.compile(r"--verbose|-q*v[qv]*")


def is_verbose(words: Sequence[str]) -> bool:
    """Whether -v is among the words, by itself, at length, or together with -q."""
    return any(_VERBOSE.fullmatch(word) for word in words)


def fail(exc: BaseException, words: Sequence[str]) -> int:
    """Print `exc` on stderr, as one line or with --json as one object, and return the exit code."""
    if isinstance(exc, SystemExit):
        return 0  # Typer leaves on its own only when stdout was closed while it printed help
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
        return exc.exit_code, "command: stopped by a signal: nothing unfinished was kept; run it again", None
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
    """Typer's usage errors, whose class is private to Typer but whose interface is Click's."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        return UsageError("command", "none was given", "see densenet-deploy --help")
    message = " ".join(str(exc.format_message()).split()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(exc, "ctx", None)
    path = context.command_path if context is not None else "densenet-deploy"
    return UsageError(path, message, f"see {path} --help")


def _facts(code: int, message: str, error: DensenetDeployError | None) -> dict[str, object]:
    facts: dict[str, object] = {"exit_code": code, "message": message}
    if error is not None:
        facts |= {"kind": type(error).__name__, "subject": error.subject, "why": error.why, "fix": error.fix}
    return facts

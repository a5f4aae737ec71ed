"""Run a command: parse, execute, print, and turn whatever happens into an exit code and at most one line of error."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from densenet_deploy.cli import (
    benchmark,
    build_trt,
    cast,
    doctor,
    evaluate,
    export,
    inspect,
    plot,
    quantize,
    report,
    run_images,
    sensitivity,
    simplify,
    tune,
    validate,
)
from densenet_deploy.cli.app import Answer, app
from densenet_deploy.cli.arguments import join_triples
from densenet_deploy.errors import printable

SCHEMA = 1

_LONGEST_LINE: Final = 10_000

COMMANDS = (
    export,
    simplify,
    validate,
    quantize,
    sensitivity,
    cast,
    build_trt,
    run_images,
    evaluate,
    benchmark,
    inspect,
    tune,
    plot,
    report,
    doctor,
)
"""Importing a command's module registers it."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        BaseException: whatever ended the command badly.
    """
    _replace_closed_streams()
    words = join_triples(sys.argv[1:] if arguments is None else arguments)
    outcome = app(words, prog_name="densenet-deploy", standalone_mode=False)
    return _print_answer(outcome) if isinstance(outcome, Answer) else 0


def _replace_closed_streams() -> None:
    """Let what is written to a closed stream go nowhere, and what a stream cannot encode be escaped."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_answer(answer: Answer) -> int:
    report, output = answer.report, answer.output
    if not output.quiet and not (output.as_json and answer.failure):  # stderr then holds the error object alone
        for note in report.notes:
            print(f"note: {printable(note, _LONGEST_LINE)}", file=sys.stderr)
    text = (
        json.dumps({"schema": SCHEMA, **report.to_json()}, allow_nan=False)
        if output.as_json
        else _safe(report.to_text())
    )
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _abandon_stdout()
    if answer.failure is not None:
        raise answer.failure
    return 0


def _safe(text: str) -> str:
    """Return `text` with control characters escaped: files carry names and labels that a terminal must not obey."""
    return "\n".join(printable(line, _LONGEST_LINE) for line in text.split("\n"))


def _abandon_stdout() -> None:
    """Whoever read us has read enough: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

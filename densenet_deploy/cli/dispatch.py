"""Run a command: parse, execute, print, and turn whatever happens into an exit code and at most one line of error."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from densenet_deploy.cli.app import Answer, app
from densenet_deploy.cli.arguments import join_triples
from densenet_deploy.errors import UsageError, is_passable, printable

SCHEMA = 1

_LONGEST_LINE: Final = 10_000
_PROGRAM: Final = "densenet-deploy"

COMMANDS: Final = {
    "export": "export",
    "simplify": "simplify",
    "validate": "validate",
    "quantize": "quantize",
    "sensitivity": "sensitivity",
    "cast": "cast",
    "build-trt": "build_trt",
    "run": "run_images",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "inspect": "inspect",
    "tune": "tune",
    "plot": "plot",
    "report": "report",
    "doctor": "doctor",
}
"""The module of each command, in the order that help lists them; importing it registers the command."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        BaseException: whatever ended the command badly.
    """
    _replace_closed_streams()
    words = join_triples(sys.argv[1:] if arguments is None else arguments)
    for word in words:
        if not is_passable(word):  # only a caller of `main` can give one
            raise UsageError(word, "holds a character that no path or name can hold", "leave it out")
    outcome = _outcome(words)
    return _print_answer(outcome) if isinstance(outcome, Answer) else 0


def _outcome(words: Sequence[str]) -> object:
    """Import the one command that the first word names and run it; without such a word import all, for help."""
    named = COMMANDS.get(words[0]) if words else None
    for module in COMMANDS.values() if named is None else (named,):
        importlib.import_module(f"densenet_deploy.cli.{module}")
    if named is None:
        return app(words, prog_name=_PROGRAM, standalone_mode=False)
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands[words[0]].main(words[1:], f"{_PROGRAM} {words[0]}", standalone_mode=False)


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

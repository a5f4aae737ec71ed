"""Run a command: parse, execute, print, and turn whatever happens into an exit code and at most one line of error."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from densenet_deploy.cli import doctor, evaluate, export, inspect, quantize, run_images, simplify, validate
from densenet_deploy.cli.app import Answer, app
from densenet_deploy.cli.arguments import join_triples
from densenet_deploy.cli.failures import Terminated, fail

SCHEMA = 1

COMMANDS = (export, simplify, validate, quantize, run_images, evaluate, inspect, doctor)
"""Importing a command's module registers it."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = join_triples(sys.argv[1:] if arguments is None else arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        outcome = app(words, prog_name="densenet-deploy", standalone_mode=False)
        if isinstance(outcome, Answer):
            return _print_answer(outcome)
        if outcome == 130:
            raise KeyboardInterrupt  # Typer hands an interrupt back as a number
        return 0
    except BaseException as exc:  # noqa: BLE001 - the last resort: every end has an exit code
        return fail(exc, words)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def _print_answer(answer: Answer) -> int:
    report, output = answer.report, answer.output
    if not output.quiet and not (output.as_json and answer.failure):  # stderr then holds the error object alone
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
    text = json.dumps({"schema": SCHEMA, **report.to_json()}, allow_nan=False) if output.as_json else report.to_text()
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _abandon_stdout()
    if answer.failure is not None:
        raise answer.failure
    return 0


def _abandon_stdout() -> None:
    """Whoever read us has read enough: let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The command line: `main` runs one command and returns its exit code.

A command is one function and one decorator (`app.command`) over a function of `workflows`. SIGINT and SIGTERM end every
command the same way: the work is unwound, and the exit code is 128 + the signal's number.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `densenet_deploy.errors`); never raises.

    Args:
        arguments: the words after the program's name; None takes this process's.
    """
    signals, words = StopSignals(), list(sys.argv[1:] if arguments is None else arguments)
    with signals.listening():  # before anything else is imported, so that a signal always ends in one line
        try:
            with _head_start(words):
                from densenet_deploy.cli.app import run

                return run(words)
        except BaseException as exc:  # noqa: BLE001 - the last resort: every end has an exit code
            from densenet_deploy.cli.outcome import fail

            return fail(signals.received or exc, words)


class Stopped(BaseException):
    """A signal asked the command to end. KeyboardInterrupt would not do: an interpreter that exits on it kills itself.

    Libraries may catch it and raise something else, so `StopSignals` remembers it: whatever ends the command after a
    signal, the signal is the reason.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class StopSignals:
    """Remembers the first signal that asked for an end; later ones are ignored, so that unwinding is not disturbed."""

    def __init__(self) -> None:
        self.received: Stopped | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Raise `Stopped` inside the block when a signal comes (in the main thread, the only one that may listen)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = Stopped(number)
            raise self.received


def _head_start(words: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Start the process that `build-trt` will need before Typer is imported, which takes as long."""
    if words[:1] != ["build-trt"] or not {"-h", "--help", "--dry-run"}.isdisjoint(words):
        return contextlib.nullcontext()
    from densenet_deploy.engines import BUILD_WORKER, BUILD_WORKER_FLAGS
    from densenet_deploy.worker import started_ahead

    verbose = not {"-v", "--verbose"}.isdisjoint(words)
    return started_ahead(BUILD_WORKER, verbose=verbose, flags=BUILD_WORKER_FLAGS)

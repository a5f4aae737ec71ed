"""The command line: thin commands, one file each, over the functions of `pipeline`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `densenet_deploy.errors`); never raises.

    Args:
        arguments: the words after the program's name; None takes this process's.
    """
    from densenet_deploy.cli.stopping import StopSignals

    signals, words = StopSignals(), list(sys.argv[1:] if arguments is None else arguments)
    with signals.listening():  # before anything else is imported, so that a signal always ends in one line
        try:
            with _head_start(words):
                from densenet_deploy.cli.dispatch import run

                return run(words)
        except BaseException as exc:  # noqa: BLE001 - the last resort: every end has an exit code
            from densenet_deploy.cli.failures import fail

            return fail(signals.received or exc, words)


def _head_start(words: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Start the process that `build-trt` will want before Typer is imported, which takes as long."""
    if words[:1] != ["build-trt"] or not {"--help", "--dry-run"}.isdisjoint(words):
        return contextlib.nullcontext()
    from densenet_deploy.engines import BUILD_WORKER, BUILD_WORKER_FLAGS
    from densenet_deploy.worker import started_ahead

    verbose = not {"-v", "--verbose"}.isdisjoint(words)
    return started_ahead(BUILD_WORKER, verbose=verbose, flags=BUILD_WORKER_FLAGS)

"""The command line: thin commands, one file each, over the functions of `pipeline`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `densenet_deploy.errors`); never raises.

    Args:
        arguments: the words after the program's name; None takes this process's.
    """
    from densenet_deploy.cli.stopping import StopSignals

    signals = StopSignals()
    with signals.listening():  # before anything else is imported, so that a signal always ends in one line
        try:
            from densenet_deploy.cli.dispatch import run

            return run(arguments)
        except BaseException as exc:  # noqa: BLE001 - the last resort: every end has an exit code
            from densenet_deploy.cli.failures import fail

            return fail(signals.received or exc, sys.argv[1:] if arguments is None else arguments)

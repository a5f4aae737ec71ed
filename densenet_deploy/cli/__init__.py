"""The command line: thin commands, one file each, over the functions of `pipeline`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `densenet_deploy.errors`); never raises.

    Args:
        arguments: the words after the program's name; None takes this process's.
    """
    from densenet_deploy.cli.main import run

    return run(arguments)

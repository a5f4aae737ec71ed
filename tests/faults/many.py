"""Runs many commands in one process, so that a file system of its own is made once: `many.py FOLDER COMMANDS_AS_JSON`.

Prints one JSON object a command: exit code, both streams, seconds, and whether anything in FOLDER changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

from densenet_deploy.cli import main
from tests.faults.harness import seen


def outcome(folder: Path, words: list[str]) -> dict[str, object]:
    """Run one command below `folder`."""
    before, out, err, start = seen(folder), io.StringIO(), io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    facts = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.process_time() - start}
    return {**facts, "unchanged": seen(folder) == before}


if __name__ == "__main__":
    for command in json.loads(sys.argv[2]):
        print(json.dumps(outcome(Path(sys.argv[1]), command)), flush=True)

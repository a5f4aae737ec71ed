"""Flips bytes of files and cuts them, and gives each to a command in a forked child of a warm process.

`python -m tests.faults.mutations FORMAT FOLDER CASES [SEED]` expects FOLDER to hold whole files; it prints a line for
every outcome that is none of the documented exit codes, or whose error is not one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
from pathlib import Path

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "zip checkpoint": ("weights.pth", ("inspect", "weights.pth")),
    "legacy checkpoint": ("legacy.pth", ("inspect", "legacy.pth")),
    "safetensors": ("weights.safetensors", ("inspect", "weights.safetensors")),
    "onnx, read": ("tiny.onnx", ("inspect", "tiny.onnx")),
    "onnx, run": ("tiny.onnx", ("run", "tiny.onnx", "picture.png")),
    "png": ("picture.png", ("run", "tiny.onnx", "picture.png")),
    "jpeg": ("picture.jpg", ("run", "tiny.onnx", "picture.jpg")),
    "engine": ("tiny.engine", ("inspect", "tiny.engine")),
    "sidecar": ("tiny.engine.json", ("inspect", "tiny.engine")),
    "array": ("samples.npy", ("quantize", "tiny.onnx", "--calibration", "samples.npy", "--recipe", "mine.toml")),
    "recipe": ("mine.toml", ("quantize", "tiny.onnx", "--calibration", "nowhere", "--recipe", "mine.toml")),
}
DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6})


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut the file, or change up to eight bytes of it, half of the time near its beginning."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed)


def _in_child(words: list[str]) -> tuple[int, str]:
    """Run the command in a forked child; return how it ended and what it said."""
    from densenet_deploy.cli import main

    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                for stream in (1, 2):
                    os.dup2(told.fileno(), stream)
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    code = main(words)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        return code, told.read().decode(errors="backslashreplace")


def faults_of(form: str, folder: Path, cases: int, seed: int = 0) -> list[str]:
    """Return a sentence for every outcome that breaks the contract."""
    name, words = FORMATS[form]
    whole, found = (folder / name).read_bytes(), []
    for case in range(cases):
        (folder / name).write_bytes(mutated(whole, random.Random(f"{form} {seed} {case}")))
        code, told = _in_child([*words])
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        others = [line for line in told.splitlines() if not line.startswith(("error: ", "note: "))]
        if code not in DOCUMENTED or len(errors) != (code != 0) or (code and others):
            found.append(f"{form}, seed {seed}, case {case}: exit code {code}: {told[-300:]!r}")
    (folder / name).write_bytes(whole)
    return found


def _warm_up() -> None:
    """Import what the commands import; nothing is run, so that no thread is lost in the forks."""
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    import densenet_deploy.cli.dispatch
    import densenet_deploy.models.checkpoints
    import densenet_deploy.pipeline.inspect.inspect
    import densenet_deploy.pipeline.quantize.quantize  # noqa: F401


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    _warm_up()
    for fault in faults_of(sys.argv[1], Path.cwd(), int(sys.argv[3]), int((*sys.argv, "0")[4])):
        print(fault)

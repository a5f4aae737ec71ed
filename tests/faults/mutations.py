"""Flips bytes of files and cuts them, and gives each to what a command does with it.

`python -m tests.faults.mutations FORMAT FOLDER CASES [PROCESSES [SEED [FIRST]]]` expects FOLDER to hold whole files; it
prints a line for every outcome that is none of the documented exit codes, or whose error is not one line. The first
PROCESSES cases are real commands. The others run the function of the command in a forked child of a warm process,
without the child that a command lets read the file first: a crash of a library shows, and whatever dies here is given
to the real command, which has to survive it.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.harness import ROOT, arguments, run_process

if TYPE_CHECKING:
    from densenet_deploy.cli.outcome import Report

DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6})
_LONGEST_SECONDS = 120


def _inspect(words: tuple[str, ...]) -> Report:
    from densenet_deploy.workflows.inspect.inspect import inspect_file

    return inspect_file(Path(words[1]))


def _inspect_engine(words: tuple[str, ...]) -> Report:
    from densenet_deploy.workflows.inspect.engine import inspect_engine

    return inspect_engine(Path(words[1]), 1)


def _run(words: tuple[str, ...]) -> Report:

    from densenet_deploy.runtime.runner import RunnerOptions
    from densenet_deploy.workflows.predict import predict

    return predict(Path(words[1]), [Path(words[2])], options=RunnerOptions(threads=1))


def _quantize(words: tuple[str, ...]) -> Report:
    from densenet_deploy.workflows.quantize.options import options_of
    from densenet_deploy.workflows.quantize.quantize import quantize

    report = quantize(Path(words[1]), Path(words[3]), options_of(words[5], {})).report
    assert report is not None
    return report


@dataclass(frozen=True)
class Format:
    """A file to corrupt, the command that reads it, the function behind the command, and the modules it imports."""

    name: str
    words: tuple[str, ...]
    function: Callable[[tuple[str, ...]], Report]
    modules: tuple[str, ...]


_INSPECT = "densenet_deploy.workflows.inspect.inspect"
_TORCH = ("torch", "safetensors.torch", "densenet_deploy.sources.file", _INSPECT)
_ONNX = ("onnx", "densenet_deploy.graph.onnx_file", _INSPECT)
_ENGINE = ("numpy", "densenet_deploy.cli.outcome", "densenet_deploy.workflows.inspect.engine")
_ORT = (
    "onnxruntime",
    "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin",
    "densenet_deploy.workflows.predict",
    "densenet_deploy.runtime.backends.onnxruntime",
    "densenet_deploy.runtime.image_damage",
)
_QUANTIZE = ("onnx_ir", "onnxruntime", "densenet_deploy.workflows.quantize.quantize")
_ON_ARRAY = ("quantize", "tiny.onnx", "--calibration", "samples.npy", "--recipe", "mine.toml")
_ON_NOTHING = ("quantize", "tiny.onnx", "--calibration", "nowhere", "--recipe", "mine.toml")

FORMATS = {
    "zip checkpoint": Format("weights.pth", ("inspect", "weights.pth"), _inspect, _TORCH),
    "legacy checkpoint": Format("legacy.pth", ("inspect", "legacy.pth"), _inspect, _TORCH),
    "safetensors": Format("weights.safetensors", ("inspect", "weights.safetensors"), _inspect, _TORCH),
    "onnx, read": Format("tiny.onnx", ("inspect", "tiny.onnx"), _inspect, _ONNX),
    "onnx, run": Format("tiny.onnx", ("run", "tiny.onnx", "image.png"), _run, _ORT),
    "png": Format("image.png", ("run", "tiny.onnx", "image.png"), _run, _ORT),
    "jpeg": Format("image.jpg", ("run", "tiny.onnx", "image.jpg"), _run, _ORT),
    "engine": Format("tiny.engine", ("inspect", "tiny.engine"), _inspect_engine, _ENGINE),
    "sidecar": Format("tiny.engine.json", ("inspect", "tiny.engine"), _inspect_engine, _ENGINE),
    "array": Format("samples.npy", _ON_ARRAY, _quantize, _QUANTIZE),
    "recipe": Format("mine.toml", _ON_NOTHING, _quantize, _QUANTIZE),
}


def share(total: int, form: str) -> int:
    """How many of `total` cases fall to this format."""
    return total // len(FORMATS) + (list(FORMATS).index(form) < total % len(FORMATS))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut the file, or change up to eight bytes of it, half of the time near its beginning."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed)


def _in_child(form: Format) -> tuple[int, str]:
    """Call the function in a forked child; return its exit code and what it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                signal.setitimer(signal.ITIMER_REAL, _LONGEST_SECONDS)
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                code = _ended(form)
                sys.stderr.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="backslashreplace")


def _ended(form: Format) -> int:
    from densenet_deploy.cli.outcome import fail

    try:
        form.function(form.words).to_text()
    except BaseException as exc:
        return fail(exc, form.words)
    return 0


def _as_command(form: Format) -> tuple[int, str]:
    ended = run_process(arguments(*form.words), Path.cwd(), DENSENET_DEPLOY_SANDBOX="on")
    return ended.code, ended.err


def faults_of(name: str, folder: Path, cases: range, processes: int = 0, seed: int = 0) -> list[str]:
    """Return a sentence for every outcome that breaks the contract."""
    form, found = FORMATS[name], []
    whole = (folder / form.name).read_bytes()
    before = set(folder.iterdir())
    for case in cases:
        (folder / form.name).write_bytes(mutated(whole, random.Random(f"{name} {seed} {case}")))
        code, output = _in_child(form) if case >= processes else _as_command(form)
        if code < 0:
            print(f"{name}, seed {seed}, case {case}: died by {-code} where nothing guards it", file=sys.stderr)
            code, output = _as_command(form)
        if not _is_documented(code, output):
            found.append(f"{name}, seed {seed}, case {case}: exit code {code}: {output[-300:]!r}")
        for made in {*folder.iterdir()} - before:  # a quantized file, where the corrupted one was good enough
            made.unlink()
    (folder / form.name).write_bytes(whole)
    return found


def _is_documented(code: int, output: str) -> bool:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    others = [line for line in output.splitlines() if not line.startswith(("error: ", "note: "))]
    return code in DOCUMENTED and len(errors) == (code != 0) and not (code and others)


def _warm_up(form: Format) -> None:
    """Import what the function imports; nothing is run, so that no thread is lost in the forks."""
    import warnings

    warnings.simplefilter("ignore")  # as the command does
    for module in form.modules:
        importlib.import_module(module)


if __name__ == "__main__":
    asked, place, count, processes, seed, first = (*sys.argv[1:], *("0", "0", "0")[len(sys.argv) - 4 :])
    os.chdir(place)
    os.environ["PYTHONPATH"] = str(ROOT)
    _warm_up(FORMATS[asked])
    chosen = range(int(first), int(first) + int(count))
    for fault in faults_of(asked, Path.cwd(), chosen, int(processes), int(seed)):
        print(fault, flush=True)

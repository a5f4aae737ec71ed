"""All that one NVIDIA GPU can answer with what is installed, in under 8 minutes: `uv run python benchmarks/gpu.py`.

Every contender has its own process (`gpu_contenders.py`): ONNX Runtime's CUDA provider through our runner (with and
without a CUDA graph), PyTorch (eager, CUDA graph, compiled), and TensorRT or TensorRT-RTX engines through our runner,
in FP32, FP16 and INT8. `pytest -m gpu` runs too. What cannot run here, fails, or does not fit into the seconds, is
listed with the reason. The results are written after every contender, so that those before a failure are kept.

The networks are untrained (see `lifelike.py`): their times are those of trained ones, their accuracy says nothing.
FP32 is computed without TF32, except where a contender is called tf32.

`--device cpu` tries the script where there is no GPU, with the contenders that do not need one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from gpu_contenders import CONTENDERS, ON_CPU, PREPARE
from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.bench.machine import gpus
from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.trt import MODULES

SECONDS: Final = 450.0
VARIANTS: Final = ("121", "201")
BATCHES: Final = (1, 8, 32)
_SECONDS_OF_A_PROCESS: Final = 120.0  # one that hangs may not take the time of the others
_ROOT: Final = Path(__file__).parents[1]
_SCRIPT: Final = Path(__file__).with_name("gpu_contenders.py")
_USED_UP: Final = "the seconds are used up"
_RAISED: Final = re.compile(r"[\w.]*(Error|Exception): ")  # some say more behind it
_PACKAGES: Final = (
    *("densenet-deploy", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cublas", "numpy"),
)


@dataclass
class Findings:
    """What is known so far; each `write` leaves a complete file."""

    options: argparse.Namespace
    machine: Machine
    start: float = field(default_factory=perf_counter)
    tests: dict[str, str] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return perf_counter() - self.start

    @property
    def seconds_left(self) -> float:
        return self.options.seconds - self.seconds

    def write(self) -> None:
        """Write them to the output as JSON."""
        facts = {"device": self.options.device, "seconds": self.seconds}
        found = {"results": self.results, "skipped": self.skipped, "tests": self.tests}
        write_results(self.options.output, self.machine, {**facts, **found})

    def say(self, text: str) -> None:
        """Print a line of progress to stderr."""
        print(f"{self.seconds:6.1f} s  {text}", file=sys.stderr, flush=True)


def in_its_process(arguments: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str | None]:
    """Run a contender's process; return the lines of JSON that it printed, and why it ended early, if it did."""
    if seconds <= 0:
        return [], _USED_UP
    command = [sys.executable, "-W", "ignore", str(_SCRIPT), *arguments]
    limit = min(seconds, _SECONDS_OF_A_PROCESS)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as exc:
        output = exc.stdout.decode() if isinstance(exc.stdout, bytes) else exc.stdout or ""
        return _lines_of(output), _USED_UP if limit == seconds else f"did not end within {limit:.0f} seconds"
    if done.returncode == 0:
        return _lines_of(done.stdout), None
    print(done.stderr, file=sys.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
    return _lines_of(done.stdout), next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1])


def _lines_of(output: str) -> list[dict[str, Any]]:
    found = []
    for text in output.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return [line for line in found if isinstance(line, dict)]


def gpu_tests(seconds: float) -> dict[str, str]:
    """The outcome of each `pytest -m gpu` test: `passed`, or `failed` or `skipped` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        options = [
            "-m",
            "gpu",
            "-q",
            "-n4",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:benchmark",
            "--continue-on-collection-errors",
        ]
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "tests/runtime"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
            print(done.stdout, file=sys.stderr)
        if not report.exists():
            return {"pytest -m gpu": "did not end in time, or could not start"}
        return {
            f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in ET.parse(report).iter("testcase")
        }


def _outcome(case: ET.Element) -> str:
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(kind)) is not None:
            return f"{word}: {found.get('message')}"
    return "passed"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not gpus():
        sys.exit("no NVIDIA GPU answers on this machine; --device cpu tries the script without one")
    found = Findings(options, Machine.this(*_PACKAGES))
    with tempfile.TemporaryDirectory() as folder:
        _measure_all(found, Path(folder))
    found.write()
    _print(found)


def _measure_all(found: Findings, folder: Path) -> None:
    options = found.options
    prepared = _prepared(found, folder)
    for contender in options.contenders or (CONTENDERS if options.device == "cuda" else ON_CPU):
        for variant in options.variants:
            name = f"{contender}, {variant}"
            if (why := _why_not(contender) or prepared[variant]) is not None:
                rows: list[dict[str, Any]] = []
            else:
                rows, why = in_its_process(_arguments(contender, variant, options, folder), found.seconds_left)
            found.results += rows
            if why is not None:
                found.skipped[name] = why
            found.write()
            found.say(f"{name}: {why or 'measured'}")


def _prepared(found: Findings, folder: Path) -> dict[str, str | None]:
    """Write the files of all variants at once, run the tests meanwhile; return for each variant what went wrong."""
    options = found.options

    def prepare(variant: str) -> str | None:
        _, why = in_its_process(_arguments(PREPARE, variant, options, folder), found.seconds_left)
        found.say(f"preparation of {variant}: {why or 'done'}")
        return why and f"preparation failed: {why}"

    with ThreadPoolExecutor() as pool:
        preparations = {variant: pool.submit(prepare, variant) for variant in options.variants}
        if options.device == "cuda" and options.tests:
            found.tests = gpu_tests(min(found.seconds_left, options.tests))
            found.say("tests done")
        return {variant: preparation.result() for variant, preparation in preparations.items()}


def _arguments(contender: str, variant: str, options: argparse.Namespace, folder: Path) -> list[str]:
    batches = map(str, options.batches)
    return [contender, "--variant", variant, "--device", options.device, "--folder", str(folder), "--batches", *batches]


def _why_not(contender: str) -> str | None:
    """What is known to be missing without trying."""
    if contender.startswith("engine") and not any(map(is_installed, MODULES.values())):
        return "neither TensorRT nor TensorRT-RTX is installed"
    return None


def _print(found: Findings) -> None:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        (row["variant"], row["batch"], row["contender"], *(shown(row[key]) for key in ("host_ms", "gpu_ms", "sqnr_db")))
        for row in sorted(found.results, key=lambda row: (row["variant"], row["batch"]))
    ]
    for name, outcome in found.tests.items():
        print(f"{outcome}: {name}" if outcome == "passed" else f"{name}: {outcome}")
    for name, why in found.skipped.items():
        print(f"not measured: {name}: {why}")
    print_table(("variant", "batch", "contender", "host to host, ms", "on the GPU, ms", "SQNR, dB"), rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="these alone, in this order")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--tests", type=float, default=120.0, help="seconds for pytest -m gpu; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    return parser


if __name__ == "__main__":
    main()

"""The cost of `Runner.run` over the bare call of its backend: `uv run python benchmarks/runner_overhead.py`.

Runner and bare call share one ONNX Runtime session, or one OpenVINO compiled model, and take turns call by call: tens
of microseconds on a call of tens of milliseconds are visible only in the difference between neighbouring calls. Each
backend has its own process, because the waiting threads of one would spin on the cores of the other.

The limit: at most 2 % of the bare call or 50 µs, whichever is larger, for the upper end of the 95 % interval.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from machine import RESULTS, Machine, print_table, seconds_of, take_turns, write_results

from densenet_deploy.artifacts import Artifact
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.runtime.cpus import usable_cpus
from densenet_deploy.runtime.feeds import Array
from densenet_deploy.runtime.runner import Device, Runner, RunnerOptions

BATCHES: Final = (1, 8)
LIMIT_SHARE: Final = 0.02
LIMIT_US: Final = 50.0
_LEAST_PAIRS: Final = 10
_WARM_UP_CALLS: Final = 3
_DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits" / "densenet_digits.safetensors"
_REQUESTS: Final = (("--variant", "121"), ("--weights", str(_DIGITS)))

BareCall = Callable[[Array], object]


@dataclass(frozen=True)
class Overhead:
    """One model at one batch size on one backend: medians of the calls, and of the differences of neighbouring calls.

    `fastest_us` is the difference between the fastest calls, which other programs affect least.
    """

    backend: str
    model: str
    batch: int
    pairs: int
    bare_ms: float
    runner_ms: float
    difference_us: Interval
    fastest_us: float
    ratio: float
    limit_us: float
    holds: bool

    @classmethod
    def of(cls, backend: str, model: str, batch: int, bare: Sequence[float], runner: Sequence[float]) -> Overhead:
        """Compare the durations of paired calls, in seconds."""
        differences = Interval.of((np.subtract(runner, bare) * 1e6).tolist())
        bare_us = float(np.median(bare)) * 1e6
        limit_us = max(LIMIT_US, LIMIT_SHARE * bare_us)
        return cls(
            backend,
            model,
            batch,
            len(bare),
            bare_us * 1e-3,
            float(np.median(runner)) * 1e3,
            differences,
            fastest_us=(min(runner) - min(bare)) * 1e6,
            ratio=1 + differences.median / bare_us,
            limit_us=limit_us,
            holds=differences.high <= limit_us,
        )


def onnxruntime_candidates(model: Path) -> tuple[BareCall, Runner]:
    """One session, called directly and through its runner."""
    import onnxruntime

    from densenet_deploy.runtime.backends.onnxruntime import OnnxRuntimeRunner

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    runner = OnnxRuntimeRunner(session, Artifact.open(model), Device("cpu"), usable_cpus(), RunnerOptions())
    return lambda batch: session.run(None, {"input": batch}), runner


def openvino_candidates(model: Path) -> tuple[BareCall, Runner]:
    """One compiled model, called directly (input not copied, result owned) and through its runner."""
    import openvino

    from densenet_deploy.runtime.backends.openvino import OpenVINORunner

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": usable_cpus()}
    core = openvino.Core()
    read = core.read_model(model)
    compiled = core.compile_model(read, "CPU", hints)
    request = compiled.create_infer_request()
    runner = OpenVINORunner(read, compiled, Artifact.open(model), Device("cpu"), RunnerOptions())
    return lambda batch: request.infer({0: batch}, share_inputs=True), runner


BACKENDS: Final = {"onnxruntime": onnxruntime_candidates, "openvino": openvino_candidates}


def measure(backend: str, models: Sequence[Path], seconds: float) -> list[Overhead]:
    """Measure every model at every batch size on one backend, `seconds` each."""
    return [_compare(backend, model, batch, seconds) for model in models for batch in BATCHES]


def _compare(backend: str, model: Path, batch: int, seconds: float) -> Overhead:
    bare, runner = BACKENDS[backend](model)
    shape = (batch, *(size or 1 for size in runner.inputs[0].shape[1:]))
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    timers = {
        "bare": partial(seconds_of, partial(bare, array)),
        "runner": partial(seconds_of, partial(runner.run, {"input": array})),
    }
    take_turns(timers, rounds=_WARM_UP_CALLS)
    times = take_turns(timers, seconds=seconds, rounds=_LEAST_PAIRS)
    return Overhead.of(backend, model.stem, batch, times["bare"], times["runner"])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime-gpu", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        models = options.model or [_export(Path(folder), *request) for request in _REQUESTS]
        overheads = [result for backend in BACKENDS for result in _in_own_process(backend, models, options.seconds)]
    write_results(options.output, machine, {"results": [asdict(overhead) for overhead in overheads]})
    print_table(
        ("backend", "model", "batch", "bare ms", "runner - bare µs [95 %]", "fastest µs", "ratio", "limit µs", "holds"),
        [_row(overhead) for overhead in overheads],
    )


def _in_own_process(backend: str, models: Sequence[Path], seconds: float) -> Iterator[Overhead]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield from pool.submit(measure, backend, models, seconds).result()


def _export(folder: Path, *options: str) -> Path:
    """Export a model into `folder` with the product."""
    command = [sys.executable, "-m", "densenet_deploy", "export", *options, "-q", "-o", f"{folder}/"]
    known = set(folder.glob("*.onnx"))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (model,) = set(folder.glob("*.onnx")) - known
    return model


def _row(overhead: Overhead) -> tuple[object, ...]:
    difference = overhead.difference_us
    return (
        overhead.backend,
        overhead.model,
        overhead.batch,
        f"{overhead.bare_ms:.2f}",
        f"{difference.median:.0f} [{difference.low:.0f}, {difference.high:.0f}]",
        f"{overhead.fastest_us:.0f}",
        f"{overhead.ratio:.4f}",
        f"{overhead.limit_us:.0f}",
        "yes" if overhead.holds else "no",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="ONNX file to use instead of 121 and digits")
    parser.add_argument("--seconds", type=float, default=20.0, help="per model, batch and backend (default 20)")
    parser.add_argument("--output", type=Path, default=RESULTS / "runner_overhead.json")
    return parser


if __name__ == "__main__":
    main()

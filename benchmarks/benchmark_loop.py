"""`benchmark` against a hand-written loop, and against itself: `uv run python benchmarks/benchmark_loop.py`.

The loop is the obvious one: open an ONNX Runtime session in its own process, call it, and take the median of
`perf_counter` differences. It takes turns with the product's worker, in reversed order every other round, and the
result is the ratio of the medians in each round. The limits: the ratio lies within 2 % of 1, and the intervals of two
consecutive runs of `benchmark` on one file overlap.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy.artifacts import Artifact
from densenet_deploy.bench.candidate import Candidate, CandidateWorker
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.manifest import Preprocessing
from densenet_deploy.runtime.cpus import usable_cpus

LIMIT: Final = 0.02
DIGITS: Final = (
    "--weights",
    str(Path(__file__).resolve().parent.parent / "examples/digits/densenet_digits.safetensors"),
)
_PAUSE_SECONDS: Final = 0.05
_WARM_UP_ROUNDS: Final = 2

# The hand-written program, which does not use this project.
LOOP: Final = """
import sys, time
import numpy, onnxruntime
path, batch, size, threads = sys.argv[1], *map(int, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
images = numpy.random.default_rng(0).standard_normal((batch, 3, size, size), numpy.float32)
for line in sys.stdin:
    for _ in range(2):
        session.run(None, {"input": images})
    times = []
    while len(times) < 3 or sum(times) < float(line):
        start = time.perf_counter()
        session.run(None, {"input": images})
        times.append(time.perf_counter() - start)
    print(numpy.median(times), flush=True)
"""


@dataclass(frozen=True)
class Ratio:
    """The product's time over the loop's, from the medians of rounds; `holds` if the median ratio is within 2 %."""

    model: str
    batch: int
    rounds: int
    loop_ms: float
    product_ms: float
    ratio: Interval
    limit: float
    holds: bool


@dataclass(frozen=True)
class Repeat:
    """Intervals of the median latency, in ms, of two consecutive runs of the command."""

    model: str
    batch: int
    first: tuple[float, float]
    second: tuple[float, float]
    overlap: bool


class Loop:
    """The loop, running in its own process."""

    def __init__(self, model: Path, batch: int, size: int) -> None:
        words = [sys.executable, "-c", LOOP, str(model), str(batch), str(size), str(usable_cpus())]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self, seconds: float) -> float:
        """Run the loop for about `seconds`, and return the median call in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(seconds, file=self._process.stdin, flush=True)
        found = float(self._process.stdout.readline())
        time.sleep(_PAUSE_SECONDS)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def against_loop(model: Path, batch: int, size: int, rounds: int, seconds: float) -> Ratio:
    """Measure the loop and the product's worker in alternation."""
    loop = Loop(model, batch, size)
    try:
        with CandidateWorker(Candidate(model, "onnxruntime", batch)) as worker:
            turns = {
                "loop": partial(loop.turn, seconds),
                "product": lambda: worker.measure(seconds).median,
            }
            take_turns(turns, rounds=_WARM_UP_ROUNDS)
            times = take_turns(turns, rounds=rounds)
    finally:
        loop.close()
    pairs = zip(times["product"], times["loop"], strict=True)
    ratio = Interval.of([product / bare for product, bare in pairs])
    holds = abs(ratio.median - 1) <= LIMIT
    loop_ms, product_ms = (median(times[name]) * 1e3 for name in ("loop", "product"))
    return Ratio(model.stem, batch, rounds, loop_ms, product_ms, ratio, LIMIT, holds)


def against_itself(model: Path, batch: int, rounds: int, seconds: float) -> Repeat:
    """Run the command twice and compare the intervals."""
    first, second = (_interval(model, batch, rounds, seconds) for _ in range(2))
    return Repeat(model.stem, batch, first, second, overlap=first[0] <= second[1] and second[0] <= first[1])


def _interval(model: Path, batch: int, rounds: int, seconds: float) -> tuple[float, float]:
    words = ["--backend", "onnxruntime", "--batch", str(batch), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "densenet_deploy", "benchmark", str(model), *words, "-q", "--json"]
    done = subprocess.run([*command, "--seconds", str(seconds * rounds)], check=True, text=True, stdout=subprocess.PIPE)
    low, high = json.loads(done.stdout)["results"][0]["interval_ms"]
    return low, high


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime-gpu")
    with tempfile.TemporaryDirectory() as folder:
        models = options.model or [_export(Path(folder), *words) for words in (DIGITS, ("--variant", "121"))]
        timing = (options.rounds, options.seconds)
        pairs = list(itertools.product(models, options.batch))
        ratios = [against_loop(model, batch, _size(model), *timing) for model, batch in pairs]
        repeats = [against_itself(model, batch, *timing) for model, batch in pairs]
    results = {"loop": [asdict(ratio) for ratio in ratios], "repeat": [asdict(repeat) for repeat in repeats]}
    write_results(options.output, machine, {"results": results})
    print_table(
        ("model", "batch", "loop ms", "product ms", "product / loop [95 %]", "within 2 %"), [*map(_row, ratios)]
    )
    print()
    print_table(
        ("model", "batch", "first ms", "second ms", "overlap"),
        [(r.model, r.batch, _span(r.first), _span(r.second), "yes" if r.overlap else "no") for r in repeats],
    )


def _export(folder: Path, *words: str) -> Path:
    model = folder / f"{Path(words[-1]).stem}.onnx"
    command = [sys.executable, "-m", "densenet_deploy", "export", *words, "-q", "-o", str(model)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return model


def _size(model: Path) -> int:
    """Height and width of the images that one of our files takes."""
    manifest = Artifact.open(model).manifest
    return Preprocessing.image_size if manifest is None else manifest.preprocessing.image_size


def _row(found: Ratio) -> tuple[object, ...]:
    ratio = f"{found.ratio.median:.4f} [{found.ratio.low:.4f}, {found.ratio.high:.4f}]"
    return (
        found.model,
        found.batch,
        f"{found.loop_ms:.2f}",
        f"{found.product_ms:.2f}",
        ratio,
        "yes" if found.holds else "no",
    )


def _span(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="our ONNX files to use instead of digits and 121")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default 1 8)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="duration of a measurement (default 0.5)")
    parser.add_argument("--output", type=Path, default=RESULTS / "benchmark_loop.json")
    return parser


if __name__ == "__main__":
    main()

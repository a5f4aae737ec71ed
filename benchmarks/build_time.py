"""The cost of `build-trt` over a bare builder: `uv run python benchmarks/build_time.py`.

Process against process: the product's command on a file that already has its precision, and `bare_build.py`, the
shortest program that builds the same engine with TensorRT-RTX. The product starts two processes, checks, reads back the
precisions, hashes, and writes engine and sidecar with fsync. The limits: at most 1.25 times the time and 1.10 times the
memory, for both of its processes together. CPU time is recorded as well: on a busy machine it is the comparable figure.
TensorRT-RTX builds without a GPU, and so does this benchmark.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy.artifacts import Artifact

TIME_LIMIT: Final = 1.25
MEMORY_LIMIT: Final = 1.10
_COMMAND: Final = (sys.executable, "-m", "densenet_deploy")
_BARE_PROGRAM: Final = str(Path(__file__).with_name("bare_build.py"))
_POLL_SECONDS: Final = 0.01


@dataclass(frozen=True)
class Run:
    """Duration of a process, CPU time of it and its children, and an upper bound of their memory."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @classmethod
    def of(cls, command: Sequence[str], environment: Mapping[str, str]) -> Run:
        """Run `command` to completion while polling its memory.

        Raises:
            CalledProcessError: if it fails.
        """
        start, others = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            held = [_most_resident_bytes(pid) for pid in _family(process.pid)]
            others = max(others, sum(held) - max(held))
            time.sleep(_POLL_SECONDS)
        seconds, (_, status, used) = time.perf_counter() - start, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command)
        largest = used.ru_maxrss * 1024  # of it and its children
        return cls(seconds, used.ru_utime + used.ru_stime, largest + others)


@dataclass(frozen=True)
class BuildCost:
    """Medians over the rounds: seconds, MiB, and the ratios of product to bare builder."""

    variant: str
    precision: str
    plan_bytes: int
    same_plan: bool
    product_seconds: float
    bare_seconds: float
    time_ratio: float
    product_cpu_seconds: float
    bare_cpu_seconds: float
    product_mib: float
    bare_mib: float
    memory_ratio: float
    time_limit: float
    memory_limit: float
    holds: bool

    @classmethod
    def of(cls, variant: str, onnx: Path, runs: dict[str, list[Run]], plans: tuple[Path, Path]) -> BuildCost:
        """Compare runs that took turns; a ratio is the median over the rounds."""
        product, bare = runs["product"], runs["bare"]
        seconds = median(ours.seconds / theirs.seconds for ours, theirs in zip(product, bare, strict=True))
        memory = median(ours.peak_bytes / theirs.peak_bytes for ours, theirs in zip(product, bare, strict=True))
        return cls(
            variant,
            Artifact.open(onnx).precision,
            plans[0].stat().st_size,
            same_plan=plans[0].read_bytes() == plans[1].read_bytes(),
            product_seconds=median(run.seconds for run in product),
            bare_seconds=median(run.seconds for run in bare),
            time_ratio=seconds,
            product_cpu_seconds=median(run.cpu_seconds for run in product),
            bare_cpu_seconds=median(run.cpu_seconds for run in bare),
            product_mib=median(run.peak_bytes for run in product) / 2**20,
            bare_mib=median(run.peak_bytes for run in bare) / 2**20,
            memory_ratio=memory,
            time_limit=TIME_LIMIT,
            memory_limit=MEMORY_LIMIT,
            holds=seconds <= TIME_LIMIT and memory <= MEMORY_LIMIT,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "tensorrt-rtx", "onnx")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [
            _measured(options, variant, onnx, folder)
            for variant in options.variants
            for onnx in _graphs(variant, folder)
        ]
    write_results(options.output, machine, {"results": [asdict(result) for result in results]})
    _print(results)


def _graphs(variant: str, folder: Path) -> Iterator[Path]:
    """The variant in FP32 and FP16, made in child processes: a process starts with the memory of its parent."""
    float_file = folder / f"{variant}.onnx"
    subprocess.run(
        [*_COMMAND, "export", "--variant", variant, "-o", str(float_file), "-q"], check=True, stdout=subprocess.DEVNULL
    )
    yield float_file
    fp16_file = folder / f"{variant}.fp16.onnx"
    subprocess.run(
        [*_COMMAND, "cast", str(float_file), "--fp16", "-o", str(fp16_file), "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    yield fp16_file


def _measured(options: argparse.Namespace, variant: str, onnx: Path, folder: Path) -> BuildCost:
    plans = folder / "product.engine", folder / "bare.engine"
    product = [*_COMMAND, "build-trt", str(onnx), f"--{Artifact.open(onnx).precision}"]
    product += ["--flavour", "rtx", "--force", "-q", "-o", str(plans[0])]
    environment = _with_bytecode_in(folder / "bytecode")
    candidates = {
        "product": partial(Run.of, product, environment),
        "bare": partial(Run.of, [sys.executable, _BARE_PROGRAM, str(onnx), str(plans[1])], environment),
    }
    take_turns(candidates, rounds=options.warm_up)
    return BuildCost.of(variant, onnx, take_turns(candidates, rounds=options.rounds), plans)


def _with_bytecode_in(folder: Path) -> dict[str, str]:
    """Return this environment with bytecode cached in `folder`, as in an installation."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"PYTHONPYCACHEPREFIX": str(folder), **kept}


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _family(int(child))


def _most_resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _print(results: Sequence[BuildCost]) -> None:
    header = ("variant", "precision", "engine", "product", "bare", "time", "CPU", "product", "bare", "memory", "limits")
    rows = [
        (
            row.variant,
            row.precision,
            f"{row.plan_bytes / 2**20:.1f} MiB",
            f"{row.product_seconds:.2f} s",
            f"{row.bare_seconds:.2f} s",
            f"{row.time_ratio:.2f}",
            f"{row.product_cpu_seconds:.2f} / {row.bare_cpu_seconds:.2f} s",
            f"{row.product_mib:.0f} MiB",
            f"{row.bare_mib:.0f} MiB",
            f"{row.memory_ratio:.2f}",
            "hold" if row.holds else "do not hold",
        )
        for row in results
    ]
    print_table(header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["121"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=1, help="uncounted rounds (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "build_time.json")
    return parser


if __name__ == "__main__":
    main()

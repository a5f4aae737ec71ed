"""How long `tune` takes, and how close its choice is to the best: `uv run python benchmarks/tune_choice.py`.

`tune` runs from an empty folder, with calibration images and no limits. Then all of its candidates are measured at
length, including those that it dropped after three short rounds: a few at a time, each in its own process, always
beside the choice. The limits: 15 minutes from start to exit on two cores, and no candidate more than 5 % faster than
the choice, or with the goal `throughput` with 5 % more images/s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.bench.candidate import Candidate
from densenet_deploy.bench.rounds import Interval, compare_speed
from densenet_deploy.runtime.cpus import usable_cpus

LIMIT_SECONDS: Final = 15 * 60.0
LIMIT_SHORTFALL: Final = 0.05
ROOT: Final = Path(__file__).resolve().parent.parent
DIGITS: Final = ROOT / "examples/digits/densenet_digits.safetensors"
SAMPLES: Final = ROOT / "calibration/samples"
_GROUP_SIZE: Final = 4  # candidates measured beside the choice
_CANNOT: Final = ("cannot run", "gives NaN")

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Rival:
    """The speed of a candidate relative to the choice in the same rounds; more than 1 is faster."""

    file: str
    backend: str
    threads: int
    batch: int
    outcome: str
    over_choice: Interval


@dataclass(frozen=True)
class Found:
    """The cost of one `tune` run, and all of its candidates.

    Attributes:
        seconds, cpu_seconds: of `tune`, from start to exit, including all processes that it started.
        exhaustive_seconds: of measuring all candidates, without writing files or comparing outputs.
        shortfall: by how much the fastest candidate is faster than the choice; 0 if the choice is the fastest.
    """

    model: str
    goal: str
    images: int
    candidates: int
    seconds: float
    cpu_seconds: float
    chosen: str
    reason: str
    exhaustive_seconds: float
    rounds: int
    turn_seconds: float
    rivals: tuple[Rival, ...]
    best: str
    shortfall: Interval
    in_time: bool
    near_best: bool


def found(model: str, goal: str, calibration: Path, rounds: int, turn_seconds: float) -> Found:
    """Tune `model`, a file or the name of a variant, and measure all candidates against the choice."""
    with tempfile.TemporaryDirectory() as folder:
        report, seconds, cpu_seconds = _tuned(model, goal, calibration, Path(folder))
        start = time.perf_counter()
        rivals = tuple(_rivals(report, rounds, turn_seconds))
        exhaustive = time.perf_counter() - start
    chosen = report["chosen"]
    best = max(rivals, key=lambda rival: rival.over_choice.median, default=None)
    shortfall = Interval(0.0, 0.0, 0.0)
    if best is not None and best.over_choice.median > 1:
        over = best.over_choice
        shortfall = Interval(over.median - 1, over.low - 1, over.high - 1)
    return Found(
        model=Path(model).stem,
        goal=goal,
        images=sum(path.is_file() for path in calibration.rglob("*")),
        candidates=len(report["candidates"]),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        chosen=_title(chosen),
        reason=str(chosen["reason"]).replace(folder, "."),
        exhaustive_seconds=exhaustive,
        rounds=rounds,
        turn_seconds=turn_seconds,
        rivals=rivals,
        best=_title(asdict(best)) if best is not None and shortfall.median > 0 else _title(chosen),
        shortfall=shortfall,
        in_time=seconds <= LIMIT_SECONDS,
        near_best=shortfall.median <= LIMIT_SHORTFALL,
    )


def _tuned(model: str, goal: str, calibration: Path, folder: Path) -> tuple[Facts, float, float]:
    """The report, the elapsed time, and the CPU time of all its processes, in seconds."""
    what = [model] if Path(model).exists() else ["--variant", model]
    words = ["--calibration", str(calibration), "--goal", goal, "-o", f"{folder}/", "-q", "--json"]
    command = [sys.executable, "-m", "densenet_deploy", "tune", *what, *words]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}  # no cached ranges
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    report: Facts = json.loads(done.stdout)
    return report, seconds, cpu


def _rivals(report: Facts, rounds: int, turn_seconds: float) -> Iterator[Rival]:
    chosen = report["chosen"]
    others = [one for one in report["candidates"] if _key(one) != _key(chosen) and _can_run(one)]
    if report["goal"] == "latency":  # the goal is the shortest call of the smallest batch size
        others = [one for one in others if one["batch"] == chosen["batch"]]
    for start in range(0, len(others), _GROUP_SIZE):
        group = others[start : start + _GROUP_SIZE]
        candidates = {"choice": chosen, **{str(number): one for number, one in enumerate(group)}}
        measured = {name: _candidate(one) for name, one in candidates.items()}
        result = compare_speed(measured, rounds=rounds, seconds_per_round=turn_seconds)
        for number, one in enumerate(group):
            ratio = result.speedup(str(number), over="choice")
            scale = one["batch"] / chosen["batch"]
            over = Interval(ratio.median * scale, ratio.low * scale, ratio.high * scale)
            outcome = str(one["outcome"])
            yield Rival(Path(one["model"]).name, one["backend"], one["threads"], one["batch"], outcome, over)


def _candidate(one: Facts) -> Candidate:
    return Candidate(Path(one["model"]), one["backend"], one["batch"], threads=one["threads"])


def _can_run(one: Facts) -> bool:
    return not str(one["outcome"]).startswith(_CANNOT)


def _key(one: Facts) -> tuple[object, ...]:
    return (one["model"], one["backend"], one["threads"], one["batch"])


def _title(one: Facts) -> str:
    name = Path(one.get("model") or one["file"]).name
    return f"{name} on {one['backend']}, {one['threads']} threads, batch {one['batch']}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
    results: list[Found] = []
    for model, goal in itertools.product(options.model, options.goal):
        images = SAMPLES if Path(model).exists() else options.calibration
        results.append(found(model, goal, images, options.rounds, options.seconds))
        write_results(options.output, machine, {"cpus": usable_cpus(), "results": [asdict(one) for one in results]})
    header = ("model", "goal", "candidates", "minutes", "CPU min", "chosen", "best is faster by", "within 5 %")
    print_table(header, [*map(_row, results)])


def _row(one: Found) -> tuple[object, ...]:
    shortfall = f"{one.shortfall.median:.1%} [{one.shortfall.low:.1%}, {one.shortfall.high:.1%}]"
    minutes = (f"{one.seconds / 60:.1f}", f"{one.cpu_seconds / 60:.1f}")
    near = "yes" if one.near_best else f"no: {one.best}"
    return one.model, one.goal, one.candidates, *minutes, one.chosen, shortfall, near


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=[str(DIGITS), "121"], help="files or variants (digits, 121)")
    parser.add_argument("--goal", nargs="+", default=["latency"], help="latency, throughput (default latency)")
    parser.add_argument("--calibration", type=Path, default=SAMPLES, help="images for variants (default: samples)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which all candidates are measured")
    parser.add_argument("--seconds", type=float, default=0.25, help="duration of a measurement (default 0.25)")
    parser.add_argument("--output", type=Path, default=RESULTS / "tune_choice.json")
    return parser


if __name__ == "__main__":
    main()

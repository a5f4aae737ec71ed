"""Commands of this version against those of an earlier one: `uv run python benchmarks/against_earlier.py CHECKOUT`.

Process against process, in this environment: `CHECKOUT` is a folder with the earlier version's files, for example made
with `git archive`. The two take turns on the same inputs, each with an empty cache; a ratio is that of two neighbouring
processes, its interval that of the median, bootstrapped over the rounds. Only commands with the same meaning in both
versions are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy.bench.rounds import Interval

ROOT: Final = Path(__file__).resolve().parent.parent
DIGITS: Final = ROOT / "examples" / "digits"


def commands(folder: Path) -> dict[str, list[str]]:
    """The words of each command, by what it shows; files that they read are in `folder`."""
    image, digits = str(min((DIGITS / "held_out").rglob("*.png"))), str(folder / "digits.onnx")
    onnx, engine = ["-o", str(folder / "out.onnx")], ["-o", str(folder / "out.engine")]
    return {
        "export of a DenseNet-121": ["export", "--variant", "121", *onnx],
        "build-trt --fp16 of a DenseNet-121": ["build-trt", "--variant", "121", "--fp16", *engine],
        "build-trt --fp16 of the digits model": ["build-trt", digits, "--fp16", *engine],
        "run of the digits model on an image": ["run", digits, image],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "torch", "onnx", "onnxruntime-gpu", "tensorrt-rtx")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = DIGITS / "densenet_digits.safetensors"
        seconds(ROOT, ["export", str(weights), "-o", str(folder / "digits.onnx")])
        for shown, words in commands(folder).items():
            if options.only and options.only not in shown:
                continue
            trees = {"before": options.checkout, "now": ROOT}
            for tree in trees.values():
                seconds(tree, words)  # from bytecode cached in a round that is not counted
            runs = take_turns(
                {key: partial(seconds, tree, words) for key, tree in trees.items()}, rounds=options.rounds
            )
            results[shown] = ratios(runs)
    write_results(options.output, machine, {"rounds": options.rounds, "results": results})
    rows = [
        (shown, *(found[key] for key in ("before", "now", "ratio", "interval"))) for shown, found in results.items()
    ]
    print_table(("command", "before, s", "now, s", "ratio", "95 % interval"), rows)


def seconds(tree: Path, words: Sequence[str]) -> float:
    """Run a command of the version in `tree` to its end.

    Raises:
        CalledProcessError: if it fails.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": cache}
        command = [sys.executable, "-m", "densenet_deploy", *words]
        command += ["--force"] if "-o" in words else []
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, cwd=cache, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def ratios(runs: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Medians in seconds, and the median of the rounds' ratios with its interval."""
    found = Interval.of([now / before for now, before in zip(runs["now"], runs["before"], strict=True)])
    medians = {key: round(median(times), 2) for key, times in runs.items()}
    return {**medians, "ratio": round(found.median, 3), "interval": [round(found.low, 3), round(found.high, 3)]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a folder with the files of an earlier version")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", help="compare the commands alone whose names hold this text")
    parser.add_argument("--output", type=Path, default=RESULTS / "against_earlier.json")
    return parser


if __name__ == "__main__":
    main()

"""The precisions of one network in WebAssembly: `uv run python benchmarks/browser.py fp32.onnx int8.onnx ...`.

The models take turns in one thread of onnxruntime-web, in Node, whose engine is that of Chromium; each is compared with
the first. A ratio is that of two neighbouring runs, its interval that of the median, bootstrapped over the rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from machine import RESULTS, Machine, print_table, write_results

from densenet_deploy.artifacts import cache_folder
from densenet_deploy.bench.rounds import Interval
from densenet_deploy.runtime.runner import open_runner
from densenet_deploy.serving.web.runtime_files import NAME, VERSION, runtime_files


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with open_runner(options.models[0], "onnxruntime") as runner:
        size = runner.inputs[0].shape[2]
    runtime_files()
    words = [cache_folder(NAME, VERSION), options.rounds, size, *options.models]
    program = Path(__file__).with_suffix(".mjs")
    done = subprocess.run(["node", program, *map(str, words)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    first = found[str(options.models[0])]
    results = {}
    for path in options.models:
        times = found[str(path)]
        ratio = Interval.of([own / other for own, other in zip(times, first, strict=True)])
        facts = {"ms": round(median(times), 1), "least_ms": round(min(times), 1), "ratio": round(ratio.median, 3)}
        results[path.name] = {**facts, "interval": [round(ratio.low, 3), round(ratio.high, 3)]}
    about = {"runtime": f"{NAME} {VERSION}", "threads": 1, "size": size, "rounds": options.rounds}
    write_results(options.output, Machine.this("densenet-deploy"), {**about, "results": results})
    header = ("model", "ms", "least ms", "ratio", "95 % interval")
    print_table(header, [(name, *facts.values()) for name, facts in results.items()])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files of one network; the first is the reference")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS / "browser.json")
    return parser


if __name__ == "__main__":
    main()

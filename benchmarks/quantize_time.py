"""What quantizing takes, against stock tools: `uv run --group bench python benchmarks/quantize_time.py`.

Every tool quantizes the same DenseNet-121 file on the same prepared images, 224x224 in an `.npy` file, as a user would
start it: one process from its imports to the written file, with an empty cache. The tools take turns, in reversed order
every other round, and the result is the median over the rounds. Ours runs once per recipe without and, unless
`--no-race`, with the comparison of speeds that it makes by default. `cpu_seconds` are of the process and its children:
on a machine that others use they tell more than the clock. Peak memory is the largest resident set of one process.

`--nncf-python` names the interpreter of another environment, if NNCF is installed there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

ROOT: Final = Path(__file__).resolve().parent.parent
RECIPES: Final = ("onnxruntime", "openvino")
PEERS: Final = ("nncf", "quantize_static")

Facts = dict[str, Any]

# A peer in its own process; `int8_peers.py` holds how each is called.
PEER: Final = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy
import int8_peers
tool, model, images, out = sys.argv[2], *map(Path, sys.argv[3:])
batches = [image[None] for image in numpy.load(images)]
if tool == "nncf":
    int8_peers.quantize_with_nncf(model, batches, "performance", out)
else:
    int8_peers.quantize_with_onnxruntime(model, batches, int8_peers.StaticQuantization(), out)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "onnxruntime-gpu", "openvino", "nncf", "onnx")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: a program that is started counts the memory of the one that started it as its peak
        prepare = f"import quantize_time; quantize_time.prepare({options.variant!r}, {options.images}, {name!r})"
        subprocess.run([sys.executable, "-c", prepare], check=True, cwd=Path(__file__).parent)
        model, images = folder / "model.onnx", folder / "images.npy"
        tools = _tools(options, model, images, folder)
        runs = take_turns(tools, rounds=options.rounds)
    results = {tool: _summary(found) for tool, found in runs.items()}
    base = median(results["nncf"]["all_seconds"])
    for facts in results.values():
        facts["of_nncf"] = round(median(facts["all_seconds"]) / base, 2)
    plan = {"variant": options.variant, "images": options.images, "rounds": options.rounds}
    write_results(options.output, machine, {"plan": plan, "results": results})
    rows = [(t, f["seconds"], f["cpu_seconds"], f["of_nncf"], f["peak_memory_mib"]) for t, f in results.items()]
    print_table(("tool", "seconds", "CPU seconds", "of NNCF's time", "peak MiB"), rows)


def prepare(variant: str, count: int, folder: str) -> None:
    """Write a network with lifelike statistics, exported as `model.onnx`, and `images.npy` for it."""
    import numpy as np
    from lifelike import save_lifelike

    from densenet_deploy.parity.samples import natural_images
    from densenet_deploy.variants import find_variant
    from densenet_deploy.workflows.export import export

    images = np.concatenate(list(natural_images(count, find_variant(variant).preprocessing)))
    place = Path(folder)
    np.save(place / "images.npy", images)
    save_lifelike(variant, np.split(images[:32], 4), place / "model.pth")
    export(place / "model.pth", out=place / "model.onnx")


def _tools(options: argparse.Namespace, model: Path, images: Path, folder: Path) -> Mapping[str, Callable[[], Facts]]:
    tools: dict[str, Callable[[], Facts]] = {}
    for tool in PEERS:
        out = folder / ("peer.xml" if tool == "nncf" else "peer.onnx")
        python = options.nncf_python if tool == "nncf" else sys.executable
        words = [str(python), "-c", PEER, str(ROOT / "benchmarks"), tool, str(model), str(images), str(out)]
        tools[tool] = partial(_run, words, folder)
    for recipe in RECIPES:
        words = [sys.executable, "-m", "densenet_deploy", "quantize", str(model), "--calibration", str(images)]
        words += ["--samples", str(options.images), "--recipe", recipe, "-q", "-o", str(folder / "ours.onnx")]
        tools[f"ours, {recipe}"] = partial(_run, [*words, "--no-never-slower"], folder, may_fail=False)
        if options.race:
            tools[f"ours, {recipe}, with the race"] = partial(_run, words, folder, may_fail=True)
    return tools


def _run(words: Sequence[str], folder: Path, *, may_fail: bool = False) -> Facts:
    """Run a program to its end; exit code 4 is a measurement too, where INT8 may turn out to gain nothing."""
    (folder / "ours.onnx").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as cache, open(os.devnull, "w") as silence:  # noqa: PTH123
        start = time.perf_counter()
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        pid = os.posix_spawn(
            words[0],
            words,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, silence.fileno(), 1), (os.POSIX_SPAWN_DUP2, 2, 2)],
        )
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    if code not in ((0, 4) if may_fail else (0,)):
        raise SystemExit(f"{words}: exit code {code}")
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{seconds:6.1f} s, {cpu:6.1f} s of CPU time", file=sys.stderr)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_mib": usage.ru_maxrss / 1024}


def _summary(runs: Sequence[Facts]) -> Facts:
    middle = {key: round(median(run[key] for run in runs), 1) for key in runs[0]}
    return {**middle, "all_seconds": [round(run["seconds"], 1) for run in runs]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="121")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-race", dest="race", action="store_false", help="only without the comparison of speeds")
    parser.add_argument("--nncf-python", type=Path, default=Path(sys.executable), help="an interpreter that has NNCF")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantize_time.json")
    return parser


if __name__ == "__main__":
    main()

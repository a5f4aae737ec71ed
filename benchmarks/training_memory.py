"""What memory-efficient training saves and costs: `uv run python benchmarks/training_memory.py`, five minutes.

A step of DenseNet-121 at batch 16 runs plain and memory-efficient in turn, each time in a process of its own, which
takes two steps and times the second. Three peaks are reported: of the tensors that are alive, as `inspect --training`
measures them; of the process (its resident memory) above what it held before the steps; and of the whole process, with
PyTorch in it. The limits: memory above what was there before falls by 40 % or more, and a step takes at most 1.35 times
as long. Times are CPU seconds of one thread, which other programs disturb less than the clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from machine import RESULTS, Machine, print_table, take_turns, write_results

from densenet_deploy.bench.rounds import Interval

LEAST_SAVED: Final = 0.4
MOST_TIME: Final = 1.35
KINDS: Final = ("plain", "memory-efficient")

STEP: Final = """
import json, resource, sys, time
import torch
from densenet_deploy.models.build import build_model
from densenet_deploy.variants import find_variant
variant, size, batch, kind = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
torch.set_num_threads(1)
model = build_model(find_variant(variant).spec, memory_efficient=kind == "memory-efficient").train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
images, classes = torch.randn(batch, 3, size, size), torch.randint(model.output_width, (batch,))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for _ in range(2):
    start, cpu = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), classes).backward()
    optimizer.step()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "step_mib": peak() - before, "process_mib": peak()}))
"""
Facts = Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    machine = Machine.this("densenet-deploy", "torch")
    words = (options.variant, str(options.image_size), str(options.batch))
    steps: dict[str, Callable[[], Facts]] = {kind: partial(_step, *words, kind) for kind in KINDS}
    runs = take_turns(steps, rounds=options.rounds)
    live = dict(zip(KINDS, _live_mib(options.variant, options.image_size, options.batch), strict=True))
    results = {kind: {**_medians(found), "live_mib": live[kind]} for kind, found in runs.items()}
    plain, lean = (results[kind] for kind in KINDS)
    saved = {name: 1 - lean[name] / plain[name] for name in ("live_mib", "step_mib", "process_mib")}
    pairs = zip(*(runs[kind] for kind in KINDS), strict=True)
    ratio = Interval.of([second["cpu_seconds"] / first["cpu_seconds"] for first, second in pairs])
    holds = {"saved": saved["step_mib"] >= LEAST_SAVED, "time": ratio.median <= MOST_TIME}
    plan = {"variant": options.variant, "image_size": options.image_size, "batch": options.batch}
    comparison = {"saved": saved, "cpu_time": vars(ratio), "holds": holds}
    write_results(options.output, machine, {"plan": plan, "rounds": options.rounds, "results": results, **comparison})
    rows = [(kind, *(f"{found[name]:.1f}" for name in plain)) for kind, found in results.items()]
    print_table(("step", *plain), rows)
    print(f"saved: {', '.join(f'{name} {value:.0%}' for name, value in saved.items())}; CPU time x {ratio.median:.2f}")


def _step(variant: str, image_size: str, batch: str, kind: str) -> Facts:
    command = [sys.executable, "-c", STEP, variant, image_size, batch, kind]
    found: Facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _live_mib(variant: str, image_size: int, batch: int) -> list[float]:
    """The peak of live tensors; PyTorch is imported last, as a child counts the memory of its parent as its peak."""
    import torch

    from densenet_deploy.models.build import DenseNet
    from densenet_deploy.models.live_memory import training_memory_of
    from densenet_deploy.variants import find_variant

    found = []
    for memory_efficient in (False, True):
        with torch.device("meta"):
            network = DenseNet(find_variant(variant).spec, memory_efficient=memory_efficient)
        found.append(training_memory_of(network, image_size, batch).peak_bytes / 2**20)
    return found


def _medians(runs: Sequence[Facts]) -> dict[str, float]:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "training_memory.json")
    return parser


if __name__ == "__main__":
    main()

"""Runs or opens an engine many times, in a process of its own, and prints what that process then holds more.

A fresh process, because in one that has run other tests a leak can hide in memory that they left free.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from tests.runtime.simulated_tensorrt import FULL, simulated_gpu

FEED = {"input": np.zeros((2, 3, 8, 8), np.float32)}


class Forgetful(list):
    """A log of calls that keeps none."""

    def append(self, call: str) -> None:
        pass


def resident_bytes() -> int:
    gc.collect()
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def growth(work: Callable[[], object], times: int) -> int:
    """Bytes that `times` calls keep, after a tenth as many to warm up."""
    for _ in range(times // 10):
        work()
    before = resident_bytes()
    for _ in range(times):
        work()
    return resident_bytes() - before


def opened(path: Path) -> Runner:
    return open_runner(path, options=RunnerOptions(trust_engine=True))


def measured(what: str, path: Path) -> int:
    kept: list[np.ndarray] = []
    if what == "openings":
        return growth(lambda: opened(path).close(), 500)
    with opened(path) as runner:
        if what == "runs":
            return growth(lambda: runner.run(FEED), 10_000)
        return growth(lambda: kept.append(runner.run(FEED)["logits"].repeat(64)), 10_000)


def main(what: str, path: Path) -> None:
    with simulated_gpu(FULL) as cuda:
        cuda.calls = Forgetful()
        opened(path).close()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        grown = measured(what, path)
        left = len(list(Path("/proc/self/fd").iterdir())) - descriptors
        print(json.dumps({"bytes": grown, "descriptors": left, "in_use": cuda.in_use()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

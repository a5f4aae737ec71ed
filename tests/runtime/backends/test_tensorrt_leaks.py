"""Ten thousand runs and five hundred openings take no memory and no descriptors with them (bad inputs 57 and 58)."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.runtime.runner import Runner, RunnerOptions, open_runner
from tests.runtime.simulated_tensorrt import FULL, simulated_gpu
from tests.runtime.simulated_tensorrt.cuda import SimulatedCuda
from tests.runtime.simulated_tensorrt.tensorrt import simulated_plan

MEANS = """<ir_version: 8, opset_import: ["" : 18]> means (float[N,3,8,8] input) => (float[N,3] logits)
{ pooled = GlobalAveragePool(input)  logits = Flatten(pooled) }"""
FEED = {"input": np.zeros((2, 3, 8, 8), np.float32)}
MIB = 2**20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")


def resident_bytes() -> int:
    gc.collect()
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def growth(work: Callable[[], object], times: int) -> int:
    """Bytes that `times` calls keep, after as many again as a tenth to warm up."""
    for _ in range(times // 10):
        work()
    before = resident_bytes()
    for _ in range(times):
        work()
    return resident_bytes() - before


@pytest.fixture
def simulation() -> Iterator[SimulatedCuda]:
    with simulated_gpu(FULL) as cuda:
        cuda.calls = Forgetful()
        yield cuda


class Forgetful(list):
    """A log of calls that keeps none."""

    def append(self, call: str) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plan = simulated_plan(
        onnx.parser.parse_model(MEANS).SerializeToString(), ((1, 2, 8),), magic=b"ftrt", version=FULL.version, mask=0
    )
    path = tmp_path / "means.engine"
    path.write_bytes(plan)
    return path


def opened(path: Path) -> Runner:
    return open_runner(path, options=RunnerOptions(trust_engine=True))


def test_ten_thousand_runs_keep_nothing(simulation: SimulatedCuda, path: Path) -> None:
    with opened(path) as runner:
        in_use, descriptors = simulation.in_use(), open_descriptors()
        assert growth(lambda: runner.run(FEED), 10_000) <= 8 * MIB
        assert (simulation.in_use(), open_descriptors()) == (in_use, descriptors)


def test_a_leak_of_a_kilobyte_a_run_would_be_seen(simulation: SimulatedCuda, path: Path) -> None:
    kept: list[np.ndarray] = []
    with opened(path) as runner:
        assert growth(lambda: kept.append(runner.run(FEED)["logits"].repeat(64)), 10_000) > 8 * MIB


def test_five_hundred_openings_keep_nothing(simulation: SimulatedCuda, path: Path) -> None:
    descriptors = open_descriptors()
    assert growth(lambda: opened(path).close(), 500) <= 16 * MIB
    assert simulation.in_use() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0}
    assert open_descriptors() == descriptors

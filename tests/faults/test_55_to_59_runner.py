"""Cases 55 to 59: the runner under load, closed, forked, and asked for what it cannot give.

Use after close and after fork (56), and smaller forms of the others on every backend, are in
`tests/runtime/test_contract_of_backends.py`; 57 and 58 on a simulated GPU in
`tests/runtime/backends/test_tensorrt_leaks.py`.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from densenet_deploy.packages import is_installed
from densenet_deploy.runtime.runner import open_runner
from tests.faults.harness import ROOT, Commands, run_process

BACKENDS = [name for name in ("onnxruntime", "openvino") if is_installed(name)]
MIB = 2**20
MEANS = """<ir_version: 8, opset_import: ["" : 18]> means (float[N,3,8,8] input) => (float[N,3] logits)
{ pooled = GlobalAveragePool(input)  logits = Flatten(pooled) }"""


@pytest.fixture
def means(tmp_path: Path) -> Path:
    path = tmp_path / "means.onnx"
    path.write_bytes(onnx.parser.parse_model(MEANS).SerializeToString())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_55_eight_threads_of_a_thousand_calls_give_the_serial_results(means: Path, backend: str) -> None:
    feeds = [np.random.default_rng(seed).standard_normal((2, 3, 8, 8), np.float32) for seed in range(8)]
    with open_runner(means, backend, "cpu") as runner:
        serial = [runner.run({"input": feed})["logits"] for feed in feeds]

        def calls(index: int) -> bool:
            results = (runner.run({"input": feeds[index]})["logits"] for _ in range(1000))
            return all(np.array_equal(result, serial[index]) for result in results)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(calls, range(8)))


LOAD = """
import json, sys
from pathlib import Path
from densenet_deploy.runtime.runner import open_runner
from tests.runtime.backends.leak_probe import FEED, growth
what, backend, path = sys.argv[1:]
opened = lambda: open_runner(path, backend, "cpu")
count = lambda: len(list(Path("/proc/self/fd").iterdir()))
kept = []
opened().close()
before = count()
if what == "openings":
    grown = growth(lambda: opened().close(), 500)
else:
    with opened() as runner:
        run = lambda: runner.run(FEED)["logits"]
        grown = growth((lambda: kept.append(run().repeat(64))) if what == "leak" else run, 10_000)
print(json.dumps([grown, count() - before]))
"""


def _grown(what: str, backend: str, path: Path) -> tuple[int, int]:
    """Bytes and descriptors that a fresh process holds more after its work."""
    ended = run_process([sys.executable, "-c", LOAD, what, backend, str(path)], ROOT)
    assert ended.code == 0, ended.err
    grown, descriptors = json.loads(ended.out)
    return grown, descriptors


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_57_ten_thousand_runs_keep_nothing(means: Path, backend: str) -> None:
    grown, descriptors = _grown("runs", backend, means)
    assert grown <= 8 * MIB
    assert descriptors <= 0  # what a backend's start had open may close meanwhile


def test_57_a_leak_of_a_kilobyte_a_run_would_be_seen(means: Path) -> None:
    assert _grown("leak", "onnxruntime", means)[0] > 8 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_58_five_hundred_openings_keep_nothing(means: Path, backend: str) -> None:
    grown, descriptors = _grown("openings", backend, means)
    assert grown <= 16 * MIB
    assert descriptors <= 0  # what a backend's start had open may close meanwhile


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--device", "cuda"),
        ("--backend", "rtx"),
        ("--backend", "tensorrt"),
        ("--backend", "openvino", "--device", "gpu"),
    ],
    ids=" ".join,
)
def test_59_a_gpu_that_is_not_there_is_never_replaced(
    commands: Commands, tiny_onnx: Path, image: Path, words: tuple[str, ...]
) -> None:
    commands.refused("run", tiny_onnx, image, *words, code=5)
    commands.refused("benchmark", tiny_onnx, *words, "--seconds", "0", "--rounds", "3", code=5)

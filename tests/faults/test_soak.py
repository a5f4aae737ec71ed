"""A runner that works for a long time is as quick and as small at the end as at the beginning.

`pytest -n0 -m slow --times 90 tests/faults/test_soak.py` takes half an hour a backend. It compares processor times too,
which depend a little on what else the machine does: `chrt -f 30` keeps that away, and the ordinary 20 s of the test
judge the memory alone.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_deploy.packages import is_installed
from tests.faults.harness import ROOT
from tests.faults.soak import Soak, soak

BACKENDS = [name for name in ("onnxruntime", "openvino") if is_installed(name)]
MIB = 2**20
SECONDS = 20
LONG = 30


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_runner_grows_neither_slower_nor_larger(digits_onnx: Path, backend: str, times: int) -> None:
    words = [sys.executable, "-m", "tests.faults.soak", str(digits_onnx), backend, str(SECONDS * times)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    seen = Soak(**json.loads(done.stdout))
    print(seen)
    assert seen.growth_bytes <= 8 * MIB, seen
    if times >= LONG:
        assert seen.slowdown <= 1.1, seen


@pytest.mark.slow
def test_a_call_that_grows_slower_would_be_seen() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        sum(range(calls * 100))

    assert soak(call, 1.0).slowdown > 1.1


@pytest.mark.slow
def test_a_call_that_keeps_memory_would_be_seen() -> None:
    kept: list[mmap.mmap] = []

    def call() -> None:
        pages = mmap.mmap(-1, 100_000)  # of its own: an allocation could find room that earlier tests have left
        pages.write(b"x" * len(pages))
        kept.append(pages)

    assert soak(call, 0.1).growth_bytes > 8 * MIB

"""Ten thousand runs and five hundred openings take no memory and no descriptors with them (bad inputs 57 and 58)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.runtime.networks import MEANS
from tests.runtime.simulated_tensorrt import FULL
from tests.runtime.simulated_tensorrt.tensorrt import simulated_plan

ROOT = Path(__file__).parents[3]
MIB = 2**20
NOTHING = {"memory": 0, "streams": 0, "events": 0, "graphs": 0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(MEANS).SerializeToString()
    path = tmp_path / "means.engine"
    path.write_bytes(simulated_plan(model, ((1, 2, 8),), magic=b"ftrt", version=FULL.version, mask=0))
    return path


def probe(what: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.runtime.backends.leak_probe", what, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ten_thousand_runs_keep_nothing(path: Path) -> None:
    found = probe("runs", path)
    assert found["bytes"] <= 8 * MIB
    assert (found["descriptors"], found["in_use"]) == (0, NOTHING)


def test_a_leak_of_a_kilobyte_a_run_would_be_seen(path: Path) -> None:
    assert probe("leak", path)["bytes"] > 8 * MIB


def test_five_hundred_openings_keep_nothing(path: Path) -> None:
    found = probe("openings", path)
    assert found["bytes"] <= 16 * MIB
    assert (found["descriptors"], found["in_use"]) == (0, NOTHING)

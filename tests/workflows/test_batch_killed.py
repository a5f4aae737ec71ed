"""A batch job that is killed at any moment and resumed leaves the bytes of one that nothing disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import DIGITS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="has no such signals"),
]

COPIES = 6
KILLS = 10


@pytest.fixture(scope="module")
def thousands(tmp_path_factory) -> Path:
    """2,160 images of digits, and 40 files that are not images."""
    folder = tmp_path_factory.mktemp("thousands")
    for number, digit in enumerate(sorted((DIGITS / "held_out").glob("*/*.png"))):
        for copy in range(COPIES):
            os.link(digit, folder / f"{number:03}-{copy}.png")
    for number in range(40):
        (folder / f"{9 * number:03}-bad.png").write_text("text")
    return folder


def command(model: Path, images: Path, out: Path, *words: str) -> list[str]:
    options = ["--shard-size", "100", "--workers", "2", "--json", *words]
    return [sys.executable, "-m", "densenet_deploy", "run", str(model), str(images), "-o", str(out), *options]


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Wait so long for a process; return whether it has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def test_a_job_that_is_killed_ten_times_leaves_the_bytes_of_one_that_was_not(digits_onnx, thousands, tmp_path):
    calm, out = tmp_path / "calm" / "rows.csv", tmp_path / "killed" / "rows.csv"
    plan = out.parent / "rows.csv.parts" / "_plan.json"
    start = time.monotonic()
    subprocess.run(command(digits_onnx, thousands, calm), check=True, capture_output=True)
    whole_s = time.monotonic() - start
    draws, killed, resumed = random.Random(0), 0, 0
    while killed < KILLS:
        if out.exists() and not plan.exists():  # it was done before it could be killed so often: once more
            assert out.read_bytes() == calm.read_bytes()
            shutil.rmtree(out.parent)
        more = ["--resume"] if plan.exists() else []
        resumed += len(more)
        with (tmp_path / "errors").open("wb") as errors:
            process = subprocess.Popen(
                command(digits_onnx, thousands, out, *more),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        if ended(process, draws.uniform(0.15, 0.6) * whole_s):
            assert process.returncode == 0, (tmp_path / "errors").read_text()
            continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    if out.exists() and not plan.exists():
        shutil.rmtree(out.parent)
    more = ["--resume"] if plan.exists() else []
    done = subprocess.run(command(digits_onnx, thousands, out, *more), check=True, capture_output=True)
    report = json.loads(done.stdout)
    assert (report["rows"], report["bad"], report["shards"]) == (2200, 40, 22)
    assert contents(out) == contents(calm)
    assert resumed


def contents(out: Path) -> dict[str, bytes]:
    """All that lies where the job wrote."""
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}

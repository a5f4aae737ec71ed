"""Cases 72 to 75: a batch job that is killed, an image that kills, workers that do not fit, a disk that is full.

`tests/serving/batch` has what kills a worker, and Ray.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from densenet_deploy.cli import main
from tests.faults.harness import ROOT, arguments, require_contract, run_process, start_process
from tests.test_disks import _has_namespaces

DIGITS = ROOT / "examples" / "digits" / "held_out"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")


@pytest.fixture(scope="module")
def undisturbed(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "rows"
    assert main([*map(str, job_line(digits_onnx, out)), "-q"]) == 0
    return out


def job_line(model: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("run", model, DIGITS, "-o", out, "--format", "csv", "--shard-size", 20, "--threads", 1, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not path.exists():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`: a worker has a session of its own."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "stat").read_text().rsplit(")", 1)[1].split()[1] == str(pid):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_72_a_job_that_was_killed_goes_on_to_the_bytes_of_one_that_was_not(
    seed: int, digits_onnx: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed three times, each at a random moment after a random shard; its workers end by themselves."""
    chance, out, whole = random.Random(seed), tmp_path / "rows", contents(undisturbed)
    last = -1
    for _ in range(3):
        process = start_process(arguments(*job_line(digits_onnx, out, "--workers", 2, "--resume")), tmp_path)
        try:
            last = min(last + 1 + chance.randrange(4), 15)
            wait_for(out / f"part-{last:05d}.csv", process)
            time.sleep(chance.random() * 0.2)
            workers = children_of(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        lock = "_plan.lock"  # which ended with the process
        there = {name: data for name, data in contents(out).items() if not name.startswith(".") and name != lock}
        assert there.items() <= whole.items()
        assert len(there) < len(whole)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert main([*map(str, job_line(digits_onnx, out, "--resume")), "-q"]) == 0
    assert contents(out) == whole


@pytest.mark.slow
def test_72_workers_that_are_killed_cost_nothing(digits_onnx: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    process = start_process(arguments(*job_line(digits_onnx, out, "--workers", 2)), tmp_path)
    try:
        for shard in (1, 6, 11):
            wait_for(out / f"part-{shard:05d}.csv", process)
            for pid in children_of(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, err
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_72_an_interrupted_job_leaves_whole_shards(
    number: int, code: int, digits_onnx: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "rows", contents(undisturbed)
    process = start_process(arguments(*job_line(digits_onnx, out)), tmp_path)
    wait_for(out / "part-00001.csv", process)
    workers = children_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.count("\n") == 1
    assert contents(out).items() <= whole.items()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert main([*map(str, job_line(digits_onnx, out, "--resume")), "-q"]) == 0
    assert contents(out) == whole


@pytest.mark.slow
@pytest.mark.skipif(not _has_namespaces(), reason="this system gives no mount namespaces (unshare -rm)")
@pytest.mark.parametrize(("out", "share", "parts"), [("rows/", 0.92, range(1, 18)), ("rows.csv", 1.3, (18,))])
def test_75_a_disk_that_fills_up_keeps_whole_shards(
    out: str, share: float, parts: Collection[int], digits_onnx: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Some shards fit; or all of them do, and the file that they become does not."""
    place, copied = tmp_path / "disk", tmp_path / "copied"
    place.mkdir()
    pages = sum(math.ceil(len(data) / 4096) for data in contents(undisturbed).values())
    line = [str(word) for word in job_line(digits_onnx, place) if word not in ("--format", "csv")]
    line[line.index(str(place))] = f"{place}/{out}"
    if out == "rows/":
        line += ["--format", "csv"]
    script = (
        'place="$1"; copied="$2"; mount -t tmpfs -o size="$3" none "$place" || exit 99; shift 3; "$@"; code=$?; '
        'cp -a "$place" "$copied"; exit $code'
    )
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(place), str(copied), f"{4 * int(share * pages)}k"]
    ended = run_process([*command, *arguments(*line)], tmp_path)
    require_contract(ended, 6, "no space left on device")
    left = {path.name: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert left.pop("_plan.json") == (undisturbed / "_plan.json").read_bytes()
    assert left.items() <= contents(undisturbed).items()
    assert len(left) in parts

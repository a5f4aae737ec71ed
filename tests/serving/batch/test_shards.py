"""A worker process and what kills it: the image it dies of becomes a row, and everything else is as if it had not."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from densenet_deploy.errors import BackendError, ModelFileError
from densenet_deploy.records import to_plain
from densenet_deploy.runtime.runner import RunnerOptions
from densenet_deploy.serving.batch.shard_worker import JobSettings
from densenet_deploy.serving.batch.shards import ShardProcess
from densenet_deploy.worker import WorkerDiedError, WorkerProgram
from densenet_deploy.workflows.worker_model import WorkerModel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")

PROGRAM = "tests.serving.batch.crashing_program"
ROOT = Path(__file__).parents[3]


def opened(model: Path, program: str = PROGRAM) -> ShardProcess:
    process = ShardProcess(job_of(model, program))
    process.open()
    return process


def job_of(model: Path, program: str = PROGRAM, batch: int = 4) -> WorkerProgram:
    options = RunnerOptions(threads=1, spin=False)
    settings = {
        "model": to_plain(WorkerModel(str(model), {}, "onnxruntime", None, options)),
        "job": to_plain(JobSettings(batch, 2, 1)),
        "fast_decode": False,
    }
    return WorkerProgram(program, settings, "tiny.onnx")


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten images of digits, and one that is text."""
    folder = tmp_path_factory.mktemp("eleven")
    digits = sorted((ROOT / "examples" / "digits" / "held_out").glob("*/*.png"))[::36]
    for number, digit in enumerate(digits):
        shutil.copy(digit, folder / f"{number}.png")
    (folder / "text.png").write_text("text")
    return [str(path) for path in sorted(folder.iterdir())]


def with_named(files: list[str], place: int, name: str, folder: Path) -> list[str]:
    """Return `files` and copies in `folder` of the first under other names."""
    copy = shutil.copy(files[0], folder / name)
    return [*files[:place], str(copy), *files[place:]]


@pytest.fixture(scope="module")
def plain_rows(tiny_onnx, eleven):
    process = opened(tiny_onnx, "densenet_deploy.workflows.batch")
    try:
        return process.classified(eleven)
    finally:
        process.close()


def test_rows_come_in_the_order_of_the_files(plain_rows, eleven):
    assert [row["file"] for row in plain_rows] == eleven
    assert [row["error"] is None for row in plain_rows] == [True] * 10 + [False]
    assert all(len(row["top"]) == 2 for row in plain_rows[:10])


@pytest.mark.slow
def test_images_that_end_their_process_are_rows_and_the_others_are_unchanged(tiny_onnx, eleven, plain_rows, tmp_path):
    """They stand at the end: before them, the batches are those of the run without them."""
    reasons = {"crash.png": "SIGSEGV", "memory.png": "ran out", "bug.png": "raised KeyError"}
    files = [*eleven, *(str(shutil.copy(eleven[0], tmp_path / name)) for name in reasons)]
    steps: list[int] = []
    process = opened(tiny_onnx)
    try:
        rows = process.classified(files, steps.append)
        again = process.classified(eleven)
    finally:
        process.close()
    assert rows[:11] == plain_rows == again
    for file, row, reason in zip(files[11:], rows[11:], reasons.values(), strict=True):
        assert (row["file"], row["index"], row["top"]) == (file, None, None)
        assert row["error"].startswith("ends the process that reads it")
        assert reason in row["error"]
    assert steps == [4, 4, 4, 2]


def test_a_process_that_was_killed_once_costs_nothing(tiny_onnx, eleven, plain_rows, tmp_path):
    files = [*eleven[:10], str(shutil.copy(eleven[10], tmp_path / "once.png"))]
    process = opened(tiny_onnx)
    first = process.pid
    try:
        rows = process.classified(files)
        assert process.pid != first
    finally:
        process.close()
    assert [{**row, "file": ""} for row in rows] == [{**row, "file": ""} for row in plain_rows]
    assert (tmp_path / "once.png.seen").exists()


@pytest.mark.slow  # two more crashes, each read twice more
def test_two_images_that_crash_in_one_batch_are_two_rows(tiny_onnx, eleven, tmp_path):
    files = with_named(with_named(eleven[:3], 1, "crash-1.png", tmp_path), 2, "crash-2.png", tmp_path)
    process = opened(tiny_onnx)
    try:
        rows = process.classified(files)
    finally:
        process.close()
    assert [row["error"] is None for row in rows] == [True, False, False, True, True]


def test_a_model_that_cannot_be_opened_is_the_error_of_its_process(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"text")
    with pytest.raises(ModelFileError):
        opened(tmp_path / "bad.onnx")


def test_a_process_that_dies_without_an_image_to_blame_ends_the_job_the_third_time(tiny_onnx, eleven):
    """Killed whenever it has answered the first batch, which no image can be blamed for."""
    process = opened(tiny_onnx, "tests.serving.batch.dying_program")
    try:
        with pytest.raises(BackendError) as caught:
            process.classified(eleven)
    finally:
        process.close()
    assert isinstance(caught.value, WorkerDiedError)
    assert caught.value.subject == "tiny.onnx"


def test_a_process_that_is_stopped_is_not_replaced(tiny_onnx, eleven):
    process = opened(tiny_onnx)
    started = threading.Event()
    failures: list[BaseException] = []

    def classify() -> None:
        try:
            process.classified(eleven * 200, lambda _: started.set())
        except WorkerDiedError as exc:
            failures.append(exc)

    thread = threading.Thread(target=classify)
    thread.start()
    assert started.wait(60)
    pid = process.pid
    process.kill()
    thread.join(60)
    process.close()
    assert len(failures) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)

"""Child processes: answers and errors cross the pipe, and whatever happens to a child happens to it alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.errors import BackendError, ModelFileError, ResourceError
from densenet_deploy.worker import (
    Limits,
    Worker,
    WorkerDiedError,
    WorkerMemoryError,
    WorkerRaisedError,
    call_in_worker,
    started_ahead,
)
from tests import worker_functions as act

posix = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals and limits")
linux = pytest.mark.skipif(sys.platform != "linux", reason="does not enforce a limit of address space")

AMPLE = Limits(2**30, 60, 120.0)

ECHO = """
import os, sys
from densenet_deploy.errors import BackendError, ModelFileError

class OwnError(BackendError):
    pass

ERRORS = {
    "model": ModelFileError("a.onnx", "is damaged", "export it again"),
    "own": OwnError("a", "b", "c"),
    "memory": ValueError("std::bad_alloc"),
    "full": OSError(28, "No space left on device"),
    "bug": KeyError("name"),
}

print("noise at import")

def main(requests):
    for request in requests:
        os.write(1, b"noise of a native library\\n")
        if str(request) in ERRORS:
            raise ERRORS[request]
        if request == "leave":
            os._exit(7)
        if request == "work":
            yield "working"
            while True:
                pass
        yield {"heard": request, "arguments": sys.argv[1:], "mark": os.environ.get("MARK")}
    os.write(2, b"closed\\n")
"""


def write_echo(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "echo_worker.py").write_text(ECHO)
    return str(folder)


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that answers what it is sent."""
    monkeypatch.syspath_prepend(write_echo(tmp_path))
    return "echo_worker"


def answer(message: object, **options: Any) -> Any:
    with Worker("echo_worker", **options) as worker:
        worker.send(message)
        return worker.receive()


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("name", ["plain", f"a{os.pathsep}b", "with space", "é"])
def test_modules_are_found_where_the_parent_finds_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(write_echo(tmp_path / name))
    assert answer([1, "é"]) == {"heard": [1, "é"], "arguments": [], "mark": None}


def test_modules_of_the_working_directory_are_not_found(
    echo: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "json.py").write_text("raise SystemExit('not json')")
    monkeypatch.chdir(folder)
    assert answer(2)["heard"] == 2


def test_flags_and_variables_reach_the_child(echo: str) -> None:
    assert answer(3, flags=("-S",), environment={"MARK": "set"})["mark"] == "set"


@pytest.mark.parametrize("verbose", [False, True])
def test_prints_of_libraries_are_shown_only_when_asked_for(
    echo: str, verbose: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(4, verbose=verbose)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert ("noise of a native library\n" in printed.err) is ("noise at import\n" in printed.err) is verbose


@pytest.mark.parametrize(
    ("message", "kind"),
    [("model", ModelFileError), ("own", BackendError), ("memory", ResourceError), ("bug", WorkerRaisedError)],
)
def test_errors_cross_the_pipe_with_their_class_and_words(echo: str, message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        answer(message)
    assert type(caught.value) is kind
    if message == "model":
        error = caught.value
        assert isinstance(error, ModelFileError)
        assert (error.subject, error.why, error.fix) == ("a.onnx", "is damaged", "export it again")


def test_an_error_of_the_system_crosses_the_pipe(echo: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        answer("full")
    assert caught.value.errno == errno.ENOSPC


def test_a_child_without_an_answer_is_an_error_about_its_subject(echo: str) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        answer("leave", subject="model.onnx")
    assert (caught.value.subject, caught.value.signal) == ("model.onnx", None)


@posix
def test_the_signal_that_ended_a_child_is_known(echo: str) -> None:
    with Worker(echo) as worker:
        os.kill(worker.pid, signal.SIGSEGV)
        worker.send(1)
        with pytest.raises(WorkerDiedError) as caught:
            worker.receive()
    assert caught.value.signal == signal.SIGSEGV


@pytest.mark.parametrize("at_once", [False, True])
def test_closing_lets_the_child_finish_unless_it_must_be_at_once(
    echo: str, at_once: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(echo, verbose=True)
    worker.send(1)
    worker.receive()
    worker.close(at_once=at_once)
    assert ("closed" in capfd.readouterr().err) is not at_once
    assert not running(worker.pid)
    worker.close()


def test_an_error_of_the_caller_ends_a_child_in_the_middle_of_its_work(echo: str) -> None:
    with Worker(echo) as worker:
        worker.send("work")
        assert worker.receive() == "working"
        start = time.monotonic()
        worker.__exit__(ValueError, ValueError(), None)
        assert not running(worker.pid)
        assert time.monotonic() - start < 2


@posix
@pytest.mark.parametrize("message", ["1", "work"])
def test_a_child_whose_parent_is_gone_ends(echo: str, tmp_path: Path, message: str) -> None:
    program = (
        f"import os, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from densenet_deploy.worker import Worker\n"
        f"worker = Worker('echo_worker'); worker.send({message!r}); worker.receive()\n"
        "print(worker.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{int(done.stdout)}/fd/0").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{int(done.stdout)}/fd/0").exists()


def test_a_child_started_ahead_is_taken_once(echo: str) -> None:
    with started_ahead(echo, verbose=False):
        with Worker(echo, verbose=True) as verbose, Worker(echo, verbose=False) as first:
            first.send(1)
            assert first.receive()["heard"] == 1
        with Worker(echo, verbose=False) as second:
            assert len({verbose.pid, first.pid, second.pid}) == 3


def test_a_child_started_ahead_that_is_not_needed_ends(echo: str) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with started_ahead(echo, verbose=False):
        assert children.read_text() != before
    assert children.read_text() == before


def heard_until(kind: type[Exception], answers: Iterator[Any]) -> tuple[list[Any], Exception]:
    """What arrived before the error, and the error."""
    heard: list[Any] = []
    with pytest.raises(kind) as caught:
        heard.extend(answers)
    return heard, caught.value


@posix
class TestCalls:
    """A function in a child, under limits."""

    def test_values_arrive(self) -> None:
        assert list(call_in_worker(act.count, [4], AMPLE)) == [0, 1, 2, 3]

    def test_prints_go_nowhere(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert list(call_in_worker(act.print_natively, [0], AMPLE)) == ["value"]
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("function", "number"),
        [
            (act.read_nothing, signal.SIGSEGV),
            (act.abort, signal.SIGABRT),
            (act.be_killed, signal.SIGKILL),
            (act.leave, None),
        ],
    )
    def test_a_crash_is_an_error_after_the_values_before_it(
        self, function: Callable[[], Iterator[int]], number: int | None
    ) -> None:
        heard, error = heard_until(WorkerDiedError, call_in_worker(function, [], AMPLE))
        assert isinstance(error, WorkerDiedError)
        assert error.signal == number
        assert heard == ([] if function is act.be_killed else [1])

    def test_a_crash_leaves_no_core_file(self, tmp_path: Path) -> None:
        heard_until(WorkerDiedError, call_in_worker(act.leave_a_core, [str(tmp_path)], AMPLE))
        assert list(tmp_path.iterdir()) == []

    @linux
    @pytest.mark.parametrize("function", [act.take, act.take_and_wrap])
    def test_memory_is_limited_beyond_what_was_there(self, function: Callable[[int], Iterator[int]]) -> None:
        assert list(call_in_worker(act.take, [100], Limits(200 * 2**20, 60, 120.0))) == [100 * 2**20]
        _, error = heard_until(WorkerMemoryError, call_in_worker(function, [300], Limits(200 * 2**20, 60, 120.0)))
        assert isinstance(error, WorkerMemoryError)
        assert error.is_own_limit

    @linux
    def test_a_narrower_limit_of_the_caller_is_kept_and_distinguished(self) -> None:
        import resource

        kept = resource.getrlimit(resource.RLIMIT_AS)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, kept[1]))
        try:
            huge = (mapped + 2 * 2**30) // 2**20
            _, error = heard_until(WorkerMemoryError, call_in_worker(act.take, [huge], Limits(2**50, 60, 120.0)))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, kept)
        assert isinstance(error, WorkerMemoryError)
        assert not error.is_own_limit

    def test_endless_computing_is_ended(self) -> None:
        heard, error = heard_until(WorkerDiedError, call_in_worker(act.compute, [], Limits(2**30, 1, 120.0)))
        assert heard == [1]
        assert isinstance(error, WorkerDiedError)
        assert error.signal == signal.SIGXCPU

    def test_endless_waiting_is_ended(self) -> None:
        _, error = heard_until(WorkerDiedError, call_in_worker(act.wait, [], Limits(2**30, 60, 1.0)))
        assert isinstance(error, WorkerDiedError)
        assert error.signal == signal.SIGALRM

    def test_an_unexpected_exception_has_its_class_name(self) -> None:
        heard, error = heard_until(WorkerRaisedError, call_in_worker(act.fail, [], AMPLE))
        assert heard == [1]
        assert isinstance(error, WorkerRaisedError)
        assert error.name == "KeyError"

    def test_a_caller_that_stops_early_leaves_no_child(self) -> None:
        answers = call_in_worker(act.wait, [], AMPLE)
        child = next(answers)
        answers.close()
        assert not running(child)

    def test_both_processes_prepare(self, tmp_path: Path) -> None:
        noted = tmp_path / "noted.txt"
        (child,) = call_in_worker(act.note_nothing, [str(noted)], AMPLE, act.note_the_process)
        assert {int(line) for line in noted.read_text().split()} == {os.getpid(), child}

    @pytest.mark.parametrize("prepare", [act.end_the_child, act.fail_in_the_child])
    def test_a_child_that_cannot_begin_is_not_the_fault_of_the_function(self, prepare: Callable[..., None]) -> None:
        assert list(call_in_worker(act.never_begun, [os.getpid()], AMPLE, prepare)) == []

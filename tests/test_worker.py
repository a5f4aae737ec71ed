"""Child processes: answers and errors cross the pipe, and whatever happens to a child happens to it alone."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.errors import BackendError, DensenetDeployError, ModelFileError, ResourceError
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
import logging, os, signal, sys
from densenet_deploy.errors import BackendError, ModelFileError

class OwnError(BackendError):
    pass

ERRORS = {
    "model": ModelFileError("a.onnx", "is damaged", "export it again"),
    "own": OwnError("a", "b", "c"),
    "memory": ValueError("std::bad_alloc"),
    "full": OSError(28, "No space left on device"),
    "vague": OSError("words without a number"),
    "bug": KeyError("name"),
    "pipe": BrokenPipeError(32, "Broken pipe"),
}

print("noise at import")

def main(requests):
    for request in requests:
        os.write(1, b"noise of a native library\\n")
        logging.getLogger("echo").info("a line of the log")
        if str(request) in ERRORS:
            raise ERRORS[request]
        if str(request).startswith("leave "):
            os._exit(int(request[6:]))
        if str(request).startswith("signal "):
            os.kill(os.getpid(), int(request[7:]))
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
def test_prints_and_logs_are_shown_only_when_asked_for(
    echo: str, verbose: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    answer(4, verbose=verbose)
    printed = capfd.readouterr()
    assert printed.out == ""
    shown = printed.err.splitlines()
    for line in ("noise at import", "noise of a native library", "a line of the log"):
        assert (line in shown) is verbose


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_caller_who_does_not_say_gets_what_is_logged_here(
    echo: str, level: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(level, "densenet_deploy.worker"):
        answer(4)
    assert ("noise at import" in capfd.readouterr().err.splitlines()) is (level == logging.INFO)


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("model", ModelFileError, ("a.onnx", "is damaged", "export it again")),
        ("own", BackendError, ("a", "b", "c")),
        ("memory", ResourceError, None),
        ("bug", WorkerRaisedError, None),
        ("vague", WorkerRaisedError, None),
    ],
)
def test_errors_cross_the_pipe_with_their_class_and_words(
    echo: str, message: str, kind: type[DensenetDeployError], words: tuple[str, ...] | None
) -> None:
    with pytest.raises(kind) as caught:
        answer(message)
    error = caught.value
    assert type(error) is kind
    if words:
        assert (error.subject, error.why, error.fix) == words
    if isinstance(error, WorkerRaisedError):
        assert (error.subject, error.name) == (echo, {"bug": "KeyError", "vague": "OSError"}[message])


def test_where_an_unexpected_error_was_raised_is_in_the_log(echo: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerRaisedError):
        answer("bug", verbose=True)
    assert "KeyError: 'name'" in capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(("message", "number"), [("full", errno.ENOSPC), ("pipe", errno.EPIPE)])
def test_an_error_of_the_system_crosses_the_pipe(echo: str, message: str, number: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        answer(message)
    assert caught.value.errno == number


def test_a_message_of_any_size_arrives_whole(echo: str) -> None:
    text = "0123456789" * 30_000
    assert answer(text)["heard"] == text


@posix
@pytest.mark.parametrize(
    ("message", "number", "word"),
    [
        ("leave 0", None, "code 0"),
        ("leave 7", None, "code 7"),
        ("signal 11", signal.SIGSEGV, "SIGSEGV"),
        ("signal 6", signal.SIGABRT, "SIGABRT"),
        ("signal 9", signal.SIGKILL, "memory"),
        ("signal 40", 40, "signal 40"),
    ],
)
def test_a_child_without_an_answer_is_an_error_that_says_how_it_ended(
    echo: str, message: str, number: int | None, word: str
) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        answer(message, subject="model.onnx")
    assert (caught.value.subject, caught.value.signal) == ("model.onnx", number)
    assert word in caught.value.why


def test_errors_are_about_the_module_unless_told_otherwise(echo: str) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        answer("leave 1")
    assert caught.value.subject == echo


@pytest.mark.parametrize("at_once", [False, True])
def test_a_child_that_is_gone_can_be_sent_to_and_closed(echo: str, at_once: bool) -> None:
    worker = Worker(echo)
    worker.kill()
    with pytest.raises(WorkerDiedError):
        worker.receive()
    worker.send(1)  # is lost, which shows in the next answer
    worker.close(at_once=at_once)


@posix
def test_a_child_can_be_killed_in_the_middle_of_its_work(echo: str) -> None:
    with Worker(echo) as worker:
        worker.send("work")
        assert worker.receive() == "working"
        worker.kill()
        with pytest.raises(WorkerDiedError) as caught:
            worker.receive()
        assert caught.value.signal == signal.SIGKILL


@pytest.mark.parametrize("options", [{}, {"at_once": False}, {"at_once": True}])
def test_closing_lets_the_child_finish_unless_it_must_be_at_once(
    echo: str, options: dict[str, bool], capfd: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(echo, verbose=True)
    worker.send(1)
    worker.receive()
    before = len(list(Path("/proc/self/fd").iterdir()))
    start = time.monotonic()
    worker.close(**options)
    assert time.monotonic() - start < 2  # after which a child that has lost its parent ends whatever it does
    assert ("closed" in capfd.readouterr().err.splitlines()) is not options.get("at_once", False)
    assert not running(worker.pid)
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 2  # both pipes
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

    def test_a_child_begins_with_its_limits_and_without_what_it_inherits(self) -> None:
        kept = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            (child,) = call_in_worker(act.report_itself, [], Limits(200 * 2**20, 50, 120.0))
        finally:
            signal.signal(signal.SIGALRM, kept)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert child["OMP_NUM_THREADS"] == "1"
        assert child["leads its session"]  # so that Ctrl-C does not reach it
        assert child["blocked signals"] == []
        assert child["SIGALRM kills"]
        assert 60 < child["clock seconds"] <= 120
        assert child["core"] == [0, 0]
        # A second more than allowed, since what was used before is rounded down; imports use little more.
        assert child["cpu seconds"] - 51 in (int(child["cpu seconds used"]), int(child["cpu seconds used"]) - 1)
        if sys.platform == "linux":  # what was mapped when the limits began, and a little more since then
            assert 0 <= child["memory used"] + 200 * 2**20 - child["memory"] < 10 * 2**20

    @linux
    @pytest.mark.parametrize("function", [act.take, act.take_and_wrap])
    def test_memory_is_limited_beyond_what_was_there(self, function: Callable[[int], Iterator[int]]) -> None:
        assert list(call_in_worker(act.take, [100], Limits(200 * 2**20, 60, 120.0))) == [100 * 2**20]
        _, error = heard_until(WorkerMemoryError, call_in_worker(function, [300], Limits(200 * 2**20, 60, 120.0)))
        assert isinstance(error, WorkerMemoryError)
        assert error.is_own_limit is True
        assert (error.subject, error.exit_code) == ("memory", 6)

    @linux
    @pytest.mark.parametrize(("allowed", "is_own"), [(2**50, False), (200 * 2**20, True)])
    def test_of_two_limits_the_narrower_counts_and_is_known(self, allowed: int, is_own: bool) -> None:
        import resource

        kept = resource.getrlimit(resource.RLIMIT_AS)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, kept[1]))
        try:
            huge = (mapped + 2 * 2**30) // 2**20
            _, error = heard_until(WorkerMemoryError, call_in_worker(act.take, [huge], Limits(allowed, 60, 120.0)))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, kept)
        assert isinstance(error, WorkerMemoryError)
        assert error.is_own_limit is is_own

    def test_a_system_without_limits_runs_the_function_all_the_same(self) -> None:
        answers = call_in_worker(act.take_after, [os.getpid(), 30], Limits(2**20, 60, 120.0), act.hide_limits)
        heard, error = heard_until(WorkerMemoryError, answers)
        assert heard == [30 * 2**20]
        assert isinstance(error, WorkerMemoryError)
        assert error.is_own_limit is False

    def test_endless_computing_is_ended(self) -> None:
        heard, error = heard_until(WorkerDiedError, call_in_worker(act.compute, [], Limits(2**30, 0, 120.0)))
        assert heard == [1]
        assert isinstance(error, WorkerDiedError)
        assert error.signal == signal.SIGXCPU
        assert error.subject == "compute"

    def test_endless_waiting_is_ended(self) -> None:
        _, error = heard_until(WorkerDiedError, call_in_worker(act.wait, [], Limits(2**30, 60, 0.3)))
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
        start = time.monotonic()
        answers.close()
        assert not running(child)
        assert time.monotonic() - start < 2  # it does not wait until the child ends by itself

    def test_both_processes_prepare(self, tmp_path: Path) -> None:
        noted = tmp_path / "noted.txt"
        (child,) = call_in_worker(act.note_nothing, [str(noted)], AMPLE, act.note_the_process)
        assert {int(line) for line in noted.read_text().split()} == {os.getpid(), child}

    def test_this_process_does_something_else_meanwhile(self, tmp_path: Path) -> None:
        noted, order = tmp_path / "noted.txt", list[str]()

        def meanwhile() -> None:
            while not noted.exists():  # until the child prepares
                time.sleep(0.01)
            order.append(noted.read_text())

        (child,) = call_in_worker(act.note_nothing, [str(noted)], AMPLE, act.note_the_process, meanwhile)
        assert [line.split() for line in order] == [[str(child)]], "this process prepares afterwards"

    def test_what_fails_meanwhile_ends_the_child(self) -> None:
        calls = call_in_worker(act.wait, [], AMPLE, None, lambda: {}["missing"])
        with pytest.raises(KeyError):
            next(calls)
        assert subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, check=False).stdout == b""

    @pytest.mark.parametrize("prepare", [act.end_the_child, act.fail_in_the_child])
    def test_a_child_that_cannot_begin_is_logged_and_not_the_fault_of_the_function(
        self, prepare: Callable[..., None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "densenet_deploy.worker"):
            assert list(call_in_worker(act.never_begun, [os.getpid()], AMPLE, prepare)) == []
        assert len(caplog.records) == 1

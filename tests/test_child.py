"""A function in a child: what it says arrives, and whatever happens to it happens to it alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.child import ChildDiedError, ChildMemoryError, ChildRaisedError, Limits, call_in_child
from tests import child_functions as act

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals and limits")

AMPLE = Limits(2**30, 60, 120.0)


def heard_until(kind: type[Exception], answers: Iterator[Any]) -> tuple[list[Any], Exception]:
    """What arrived before the error, and the error."""
    heard: list[Any] = []
    with pytest.raises(kind) as caught:
        heard.extend(answers)
    return heard, caught.value


def test_what_the_function_yields_arrives() -> None:
    assert list(call_in_child(act.count, [4], AMPLE)) == [0, 1, 2, 3]


def test_what_native_code_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(call_in_child(act.print_natively, [0], AMPLE)) == ["said"]
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
def test_a_crash_is_an_answer(function: Callable[[], Iterator[int]], number: int | None) -> None:
    _, error = heard_until(ChildDiedError, call_in_child(function, [], AMPLE))
    assert isinstance(error, ChildDiedError)
    assert error.number == number


def test_what_was_said_before_a_crash_is_heard() -> None:
    heard, _ = heard_until(ChildDiedError, call_in_child(act.read_nothing, [], AMPLE))
    assert heard == [1]


def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    heard_until(ChildDiedError, call_in_child(act.leave_a_core, [str(tmp_path)], AMPLE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [act.take, act.take_and_wrap])
@pytest.mark.skipif(sys.platform != "linux", reason="keeps no limit of address space")
def test_memory_is_limited_beyond_what_was_there(function: Callable[[int], Iterator[int]]) -> None:
    assert list(call_in_child(act.take, [100], Limits(200 * 2**20, 60, 120.0))) == [100 * 2**20]
    _, error = heard_until(ChildMemoryError, call_in_child(function, [300], Limits(200 * 2**20, 60, 120.0)))
    assert isinstance(error, ChildMemoryError)
    assert error.was_ours


@pytest.mark.skipif(sys.platform != "linux", reason="keeps no limit of address space")
def test_a_narrower_limit_of_the_caller_is_kept_and_told_apart() -> None:
    import resource

    kept = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, kept[1]))
    try:
        huge = (mapped + 2 * 2**30) // 2**20
        _, error = heard_until(ChildMemoryError, call_in_child(act.take, [huge], Limits(2**50, 60, 120.0)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)
    assert isinstance(error, ChildMemoryError)
    assert not error.was_ours


def test_endless_computing_is_ended() -> None:
    heard, error = heard_until(ChildDiedError, call_in_child(act.compute, [], Limits(2**30, 1, 120.0)))
    assert heard == [1]
    assert isinstance(error, ChildDiedError)
    assert error.number == signal.SIGXCPU


def test_endless_waiting_is_ended() -> None:
    _, error = heard_until(ChildDiedError, call_in_child(act.wait, [], Limits(2**30, 60, 1.0)))
    assert isinstance(error, ChildDiedError)
    assert error.number == signal.SIGALRM


def test_an_exception_is_told_by_its_class() -> None:
    heard, error = heard_until(ChildRaisedError, call_in_child(act.fail, [], AMPLE))
    assert heard == [1]
    assert isinstance(error, ChildRaisedError)
    assert error.name == "KeyError"


def test_whoever_stops_listening_leaves_no_child() -> None:
    answers = call_in_child(act.wait, [], AMPLE)
    child = next(answers)
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_both_processes_prepare(tmp_path: Path) -> None:
    noted = tmp_path / "noted.txt"
    (child,) = call_in_child(act.note_nothing, [str(noted)], AMPLE, act.note_the_process)
    assert {int(line) for line in noted.read_text().split()} == {os.getpid(), child}


def test_a_child_that_cannot_begin_is_no_fault_of_the_function() -> None:
    assert list(call_in_child(act.never_begun, [os.getpid()], AMPLE, act.break_the_child)) == []

"""How a command ends: what is printed where, and the exit code."""

from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import typer

from densenet_deploy.cli.outcome import Answer, Printing, fail, print_answer
from densenet_deploy.errors import GateError, UsageError
from densenet_deploy.reports import Report


@dataclass(frozen=True, kw_only=True)
class Count(Report):
    kind: ClassVar[str] = "count"
    count: int

    def to_text(self) -> str:
        return f"counted {self.count}\x1b[31m"


MISSED = GateError("count", "is too low", "count again")


def test_a_report_is_printed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    report = Count(count=3, notes=("about\nthree",))
    assert print_answer(Answer(report, Printing()), ["count"]) == 0
    assert capsys.readouterr() == ("counted 3\\x1b[31m\n", "note: about\\nthree\n")
    assert print_answer(Answer(report, Printing(as_json=True, quiet=True)), ["count"]) == 0
    captured = capsys.readouterr()
    answer = {"schema": 1, "count": 3, "notes": ["about\nthree"], "argv": ["densenet-deploy", "count"]}
    assert (json.loads(captured.out), captured.err) == (answer, "")


@pytest.mark.parametrize(("as_json", "err"), [(False, "note: three\n"), (True, "")])
def test_a_report_of_what_failed_is_printed_too(capsys: pytest.CaptureFixture[str], as_json: bool, err: str) -> None:
    with pytest.raises(GateError) as caught:
        print_answer(Answer(Count(count=3, notes=("three",)), Printing(as_json=as_json), MISSED), [])
    assert caught.value is MISSED
    captured = capsys.readouterr()
    assert ("3" in captured.out, captured.err) == (True, err)


def test_a_reader_that_has_gone_is_not_a_failure_and_hears_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert print_answer(Answer(Count(count=3), Printing()), []) == 0
        print("more", flush=True)  # raises where the stream still leads to the closed pipe


class Closed(typer.Exit):
    """An exception of Typer's that is not about usage."""

    exit_code = 1

    def format_message(self) -> str:
        return "closed"


@pytest.mark.parametrize(
    ("exc", "code", "kind", "subject"),
    [
        (MISSED, 4, "GateError", "count"),
        (MemoryError(), 6, "ResourceError", "memory"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.onnx"), 3, "InputError", "a.onnx"),
        (OSError(errno.ENOSPC, "No space left"), 6, "ResourceError", "operating system"),
        (typer.BadParameter("is odd"), 2, "UsageError", "densenet-deploy"),
        (Closed(), 1, None, None),
        (ZeroDivisionError("division by zero\n"), 1, None, None),
    ],
)
def test_every_exception_has_an_exit_code_and_one_line(
    capsys: pytest.CaptureFixture[str], exc: Exception, code: int, kind: str | None, subject: str | None
) -> None:
    assert fail(exc, []) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err[:7], captured.err.count("\n")) == ("", "error: ", 1)
    assert fail(exc, ["--json"]) == code
    facts = json.loads(capsys.readouterr().err)["error"]
    assert (facts["exit_code"], facts.get("kind"), facts.get("subject")) == (code, kind, subject)
    assert captured.err == f"error: {facts['message']}\n"
    assert (type(exc).__name__ in facts["message"]) == (code == 1), "a bug of ours names the class"


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left")


def test_a_stderr_that_is_full_still_leaves_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Full())
    assert fail(UsageError("a", "b", "c"), []) == 2

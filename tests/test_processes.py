"""A child of ours: it finds its modules, hears and answers in lines of JSON, and prints of others stay out of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from densenet_deploy.processes import end, say, start

ECHO = """
import json, os, sys
from densenet_deploy.processes import answers, say

def main():
    with answers() as stream:
        for line in sys.stdin.buffer:
            os.write(1, b"noise of a native library\\n")
            say(stream, {"heard": json.loads(line), "arguments": sys.argv[1:], "mark": os.environ.get("MARK")})
"""


def _write_echo(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "echo_of_ours.py").write_text(ECHO)
    return str(folder)


def _answered(question: object, **options: Any) -> dict[str, Any]:
    process = start("echo_of_ours", **{"verbose": False, **options})
    try:
        say(process.stdin, question)
        assert process.stdout is not None
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer
    finally:
        end(process)


@pytest.mark.parametrize("name", ["plain", f"a{os.pathsep}b", "with space", "é"])
def test_modules_are_found_where_the_parent_finds_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(_write_echo(tmp_path / name))
    assert _answered([1, "é"]) == {"heard": [1, "é"], "arguments": [], "mark": None}


def test_modules_of_the_working_directory_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_write_echo(tmp_path / "ours"))
    (tmp_path / "json.py").write_text("raise SystemExit('not json')")
    monkeypatch.chdir(tmp_path)
    assert _answered(2)["heard"] == 2


def test_flags_and_variables_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_write_echo(tmp_path))
    assert _answered(3, flags=("-S",), environment={"MARK": "set"})["mark"] == "set"


@pytest.mark.parametrize("verbose", [False, True])
def test_what_others_print_is_shown_only_when_asked_for(
    verbose: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(_write_echo(tmp_path))
    _answered(4, verbose=verbose)
    assert capfd.readouterr() == ("", "noise of a native library\n" if verbose else "")


def test_a_child_whose_parent_stops_listening_ends_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(_write_echo(tmp_path))
    process = start("echo_of_ours", verbose=True)
    assert process.stdout is not None
    process.stdout.close()
    say(process.stdin, "x")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in capfd.readouterr().err


def test_an_ended_child_is_gone_and_its_pipes_closed() -> None:
    process = start("densenet_deploy.child", verbose=False)
    end(process)
    assert process.returncode == (1 if sys.platform == "win32" else -9)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdin.closed
    assert process.stdout.closed
    end(process)

"""The progress of a road: a bar with counts on a terminal, nothing anywhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from densenet_deploy.cli.arguments import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def enter(monkeypatch) -> Callable[..., _Terminal]:
    """What puts a terminal in the place of stderr, once the test is running: pytest sets its own just before."""

    def enter(*words: str) -> _Terminal:
        stream = _Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "argv", ["densenet-deploy", "quantize", *words])
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        return stream

    return enter


def test_a_terminal_shows_the_stage_and_the_count(enter):
    terminal = enter()
    with progress() as listener:
        listener("calibrate")
        listener("calibrate", 96, 512)
    assert "calibrate" in terminal.getvalue()
    assert "96/512" in terminal.getvalue()


def test_a_stage_that_does_not_count_shows_none(enter):
    terminal = enter()
    with progress() as listener:
        listener("calibrate", 96, 512)
        listener("write INT8")
    last = terminal.getvalue().rpartition("write INT8")[2]
    assert "write INT8" in terminal.getvalue()
    assert "/512" not in last


@pytest.mark.parametrize("word", ["-q", "--quiet", "--json"])
def test_whoever_wants_silence_gets_it(enter, word):
    terminal = enter(word)
    with progress() as listener:
        listener("calibrate", 96, 512)
    assert terminal.getvalue() == ""


def test_a_file_shows_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress() as listener:
        listener("calibrate", 96, 512)
    assert stream.getvalue() == ""

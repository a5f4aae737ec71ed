"""What a notebook shows: nothing in it is obeyed, and one bar leaves with the cell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from densenet_deploy.model import Model
from densenet_deploy.notebook import LONGEST_LINE, NotebookBar, bar_html, html_table, notes_html, preformatted
from densenet_deploy.workflows.export import export
from densenet_deploy.workflows.load import load
from densenet_deploy.workflows.stages import in_notebook

EVIL = "<script>alert(1)</script>\x1b[2J"
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J"


def test_text_is_shown_as_it_is_and_cut_where_it_is_endless() -> None:
    assert preformatted(f"a\n{EVIL}") == f'<pre style="white-space:pre;overflow-x:auto">a\n{SHOWN}</pre>'
    assert len(preformatted("y" * 1_000_000)) < LONGEST_LINE + 100
    assert notes_html([EVIL, "b"]) == f"<div><em>note: {SHOWN}</em></div><div><em>note: b</em></div>"


def test_a_table_aligns_its_numbers() -> None:
    left, right = '<td style="text-align:left">', '<td style="text-align:right">'
    body = f"<tbody><tr>{left}{SHOWN}</td>{right}2</td></tr></tbody>"
    assert html_table((), [(EVIL, "2")], (1,)) == f"<table>{body}</table>"
    head = '<thead><tr><th style="text-align:left">a</th><th style="text-align:right">b</th></tr></thead>'
    assert html_table(("a", "b"), [(EVIL, "2")], (1,)) == f"<table>{head}{body}</table>"


def test_a_model_shows_its_facts_and_what_made_it(tiny_onnx: Path) -> None:
    held = Model.from_bytes("<i>held", tiny_onnx.read_bytes())
    shown = held._repr_html_()
    assert "model       &lt;i&gt;held, fp32\n" in shown
    assert "input       " in shown
    assert f"file        in memory, {len(tiny_onnx.read_bytes()) / 2**20:.1f} MiB" in shown
    assert f"file        {tiny_onnx}" in load(tiny_onnx)._repr_html_()
    made = export(tiny_onnx)._repr_html_()
    assert made.count("<pre") == 2
    assert made.count("input       ") == 1, "the report has it"
    assert "parity      " in made


class Shell:
    """What a bar needs of IPython's shell in a kernel: `run_cell` ends a cell; `shown` is what its output holds."""

    kernel = "a kernel"

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.callbacks: list[Callable[[object], None]] = []
        self.events = self.display = self

    def register(self, event: str, callback: Callable[[object], None]) -> None:
        assert event == "post_run_cell"
        self.callbacks.append(callback)

    def unregister(self, event: str, callback: Callable[[object], None]) -> None:
        assert event == "post_run_cell"
        self.callbacks.remove(callback)

    def __call__(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Shell:
        assert (raw, display_id) == (True, True)
        self.shown.append(content["text/html"])
        return self

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown[-1] = content["text/html"]

    def end_cell(self) -> None:
        for callback in [*self.callbacks]:
            callback(None)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    found = Shell()
    ipython = SimpleNamespace(get_ipython=lambda: found, display=SimpleNamespace(display=found))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return found


def test_a_cell_has_one_bar_that_leaves_with_it(shell: Shell):
    bar = NotebookBar()
    bar("read <x>")
    assert shell.shown == ["read &lt;x&gt; <progress></progress>"]
    bar("calibrate", 1, 4)
    assert len(shell.shown) == 1
    assert shell.shown[0].startswith('calibrate <progress value="1" max="4"></progress> 1/4')
    shell.end_cell()
    assert (shell.shown, shell.callbacks) == ([""], [])
    bar("calibrate", 1, 4)
    assert len(shell.shown) == 2, "the next cell has its own"
    assert len(shell.callbacks) == 1


def test_steps_of_a_stage_are_shown_ten_times_a_second(shell: Shell):
    bar = NotebookBar()
    for step in range(1000):
        bar("calibrate", step, 1000)
    assert shell.shown[0].startswith('calibrate <progress value="0"')


def test_the_time_left_follows_the_pace():
    assert (
        bar_html("evaluate", 90, 360, 20.0) == 'evaluate <progress value="90" max="360"></progress> 90/360, 60 s left'
    )
    assert bar_html("evaluate", 0, 360, 20.0) == 'evaluate <progress value="0" max="360"></progress> 0/360'


def test_outside_a_notebook_nothing_is_shown(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    del Shell.kernel
    try:
        NotebookBar()("read")
        assert (shell.shown, shell.callbacks) == ([], [])
    finally:
        Shell.kernel = "a kernel"
    monkeypatch.delitem(sys.modules, "IPython")
    in_notebook("read")
    assert shell.shown == []

"""The blocks of pages: tutorials run in order, in a clone, and print what they show; what can't run here is parsed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import densenet_deploy as dd
from densenet_deploy.cli.app import COMMANDS, declaration

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
OTHERS = sorted(page for page in (ROOT / "docs").glob("[!t]*/*.md") if "```python" in page.read_text())
ELSEWHERE = (
    "# on the Jetson\n",
    "# on a cluster\n",
    "# on a GPU\n",
    "# where Triton is\n",
    "# where npm can fetch onnxruntime-web\n",
    "# where the server answers\n",
)
"""How a block begins that can't run here."""

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LEFT_OUT = "…"
"""Stands for any number of lines of an output."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the code of every block of a page."""
    return [(language, code) for language, code, _ in BLOCK.findall(page.read_text())]


def is_shown(shown: str, printed: str) -> bool:
    """Whether an output is what a page shows: numbers may differ, and a line `…` stands for any others."""
    kept = (re.escape(line) + "\n" if line != LEFT_OUT else "(?:.*\n)*" for line in _without_numbers(shown))
    return re.fullmatch("".join(kept), "".join(f"{line}\n" for line in _without_numbers(printed))) is not None


def _without_numbers(text: str) -> list[str]:
    """The lines of a text without numbers and widths of columns, which differ between machines."""
    plain = re.sub(r"[-+]?\d[\d.,]*(e[+-]\d+)?", "#", text.strip()).replace("# thread)", "# threads)")
    return [" ".join(line.split()) for line in plain.splitlines()]


def commands(code: str) -> list[list[str]]:
    """The words of every command of ours in a script."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("densenet-deploy ")]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_and_option_of_a_tutorial_exists(page: Path) -> None:
    found = [words for language, code in blocks(page) if language == "bash" for words in commands(code)]
    assert found
    for name, *words in found:
        assert name in COMMANDS
        declaration(name).click_command().make_context(name, words)


@pytest.mark.parametrize("page", [*TUTORIALS, *OTHERS], ids=lambda page: page.stem)
def test_every_block_of_a_page_can_be_read(page: Path) -> None:
    for language, code in blocks(page):
        if language == "python":
            ast.parse(code)
        else:
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)


def test_what_a_test_runs_is_most_of_each_tutorial() -> None:
    """What needs a device, a server or a download is at the end."""
    elsewhere = {page.stem: sum(code.startswith(ELSEWHERE) for _, code in blocks(page)) for page in TUTORIALS}
    assert elsewhere == {
        "browser": 2,
        "chest-x-ray": 0,
        "fine-tune-to-edge": 0,
        "jetson": 4,
        "million-images": 1,
        "triton": 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_blocks_of_a_tutorial_run_in_their_order(page: Path, tmp_path: Path) -> None:
    for name in ("examples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = tmp_path / "bin" / "densenet-deploy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m densenet_deploy "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    paths = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for language, code, shown in BLOCK.findall(page.read_text()):
        if not code.startswith(ELSEWHERE):
            run = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
            done = subprocess.run(
                [*run, code], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            assert not shown or is_shown(shown, done.stdout), f"{code}\n{done.stdout}"


def test_an_output_is_what_is_shown_but_for_numbers() -> None:
    printed = "wrote  a.onnx\nparity  SQNR 40.9 dB\nseconds  2.5\n"
    assert is_shown("wrote a.onnx\nparity SQNR 131 dB\nseconds 1\n", printed)
    assert is_shown("wrote a.onnx\n…\n", printed)
    assert is_shown("wrote a.onnx\n…\nseconds 1\n…\n", printed)
    assert not is_shown("wrote a.onnx\n", printed)
    assert not is_shown("…\nwrote a.onnx\n", printed)
    assert not is_shown("wrote b.onnx\n…\n", printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, digits_onnx: Path, tmp_path: Path) -> None:
    """In a folder with the digits model, its images, and a network that takes pixels."""
    (tmp_path / "digits.onnx").write_bytes(digits_onnx.read_bytes())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "photo.jpg").symlink_to(next(ROOT.glob("examples/digits/held_out/*/*.png")))
    small = dd.load("121", architecture=dd.Architecture(growth_rate=4, blocks=(1, 1), init_features=8))
    dd.export(small, dd.ExportOptions(input="uint8"), out=tmp_path / "chest.onnx")
    code = "\n".join(code for language, code in blocks(page) if language == "python" and not code.startswith(ELSEWHERE))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

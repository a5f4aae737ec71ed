"""The README is correct: its commands run and print what it shows, its Python runs, and links in documents resolve."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n\$ (densenet-deploy [^\n]+)\n(.*?)```", README, re.DOTALL)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("calibration/*.md")])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone of the repository."""
    for name in ("examples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _run(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "densenet_deploy", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _shape(text: str) -> list[str]:
    """The lines with every number replaced, since measurements differ between machines."""
    return [re.sub(r"\s+", " ", re.sub(r"[\d.,]+(e[+-]\d+)?(\+\w+)?", "#", line)) for line in text.strip().splitlines()]


def test_the_readme_shows_the_workflow_in_order() -> None:
    shown = [command.split()[1] for command, _ in CONSOLE]
    assert shown == ["export", "run", "evaluate", "validate", "inspect", "quantize", "build-trt"]


@pytest.mark.slow
def test_its_commands_in_their_order_and_then_its_python(clone: Path) -> None:
    for command, shown in CONSOLE:
        printed = _run(shlex.split(command)[1:], clone)
        assert _shape(printed) == _shape(shown), command
        for accuracy in re.findall(r"top-1 [\d.]+%", shown if " evaluate " in command else ""):
            assert accuracy in printed
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(4, 10)\n")


@pytest.mark.slow
def test_the_first_command_writes_a_verified_densenet121(clone: Path) -> None:
    """The only full-size export in this file."""
    assert "uv run densenet-deploy export --variant 121" in README
    printed = _run(["export", "--variant", "121"], clone)
    assert "7,978,856 parameters" in printed
    assert (clone / "artifacts" / "densenet121.onnx").stat().st_size > 30e6


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"```bash\n(.*pytest.*)\n```", README)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    """Files, and headings in them."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not heading or heading in _headings(target))):
            broken.append(link)
    assert broken == []


def _headings(page: Path) -> set[str]:
    """The names by which GitHub and the site link to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {title.replace(" ", "-") for title in plain}

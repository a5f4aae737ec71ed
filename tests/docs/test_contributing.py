"""The recipes in CONTRIBUTING work: their files, put into a copy of the package, pass their tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))


def test_every_recipe_has_a_test():
    modules = {Path(path).stem for path in FILES if path.startswith("densenet_deploy/")}
    tested = {Path(path).stem.removeprefix("test_") for path in FILES if path.startswith("tests/")}
    assert tested == modules - {"digesting"}
    assert len(tested) == 5


@pytest.mark.parametrize("path", FILES)
def test_a_recipe_takes_no_name_that_is_taken(path):
    assert not (ROOT / path).exists()
    assert (ROOT / path).parent.is_dir()


def test_the_folders_of_the_map_exist():
    table = PAGE.partition("| folder | what |\n")[2].partition("\n\n")[0]
    named = [path for line in table.splitlines() for path in re.findall(r"`([\w/]+/)`", line.split("|")[1])]
    assert named
    package = ROOT / "densenet_deploy"
    assert [path for path in named if not ((ROOT / path).is_dir() or (package / path).is_dir())] == []


@pytest.mark.slow
def test_the_recipes_work_in_a_copy_of_the_package(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("densenet_deploy", "tests", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, text in FILES.items():
        (tmp_path / path).write_text(text)
    app = tmp_path / "densenet_deploy" / "cli" / "app.py"
    before, added, after = re.findall(r"```diff\n.*?\n ([^\n]+)\n\+([^\n]+)\n ([^\n]+)\n```", PAGE, re.DOTALL)[0]
    assert f"{before}\n{after}" in app.read_text()
    app.write_text(app.read_text().replace(f"{before}\n{after}", f"{before}\n{added}\n{after}"))
    tests = [path for path in FILES if path.startswith("tests/")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout

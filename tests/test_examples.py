"""Every example in the documentation runs: those of docstrings, and those of the API reference in its order."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import densenet_deploy
from tests.conftest import DIGITS

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(densenet_deploy.__path__, "densenet_deploy.")
    if not module.name.endswith("__main__")
)
NAMES = [name for name in densenet_deploy.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


class _Checker(doctest.OutputChecker):
    """Compares outputs with every number replaced: what is measured differs from machine to machine."""

    def check_output(self, want: str, got: str, flags: int) -> bool:
        return super().check_output(_without_numbers(want), _without_numbers(got), flags)


def _without_numbers(text: str) -> str:
    return re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", text)


@pytest.fixture(scope="module")
def folder(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    place = tmp_path_factory.mktemp("examples")
    (place / "digits.onnx").write_bytes(digits_onnx.read_bytes())
    (place / "densenet_digits.safetensors").symlink_to(DIGITS / "densenet_digits.safetensors")
    (place / "held_out").symlink_to(DIGITS / "held_out")
    (place / "calibration").symlink_to(ROOT / "calibration")
    return place


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, folder, monkeypatch):
    """Those that are marked to be skipped need a download or a GPU."""
    monkeypatch.chdir(folder)
    value = getattr(densenet_deploy, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(value, name, globs={name: value}) or [None]
    if test is None or not test.examples:
        assert name.endswith(("Options", "Error", "Warning", "Report")) or isinstance(value, type), "has no example"
        return
    test.globs |= {name: getattr(densenet_deploy, name) for name in NAMES} | {"densenet_deploy": densenet_deploy}
    test.globs["dd"] = densenet_deploy
    runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


@pytest.mark.slow
def test_the_examples_of_the_api_reference_run_in_order():
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference" / "api.md").read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_function_has_a_section_in_the_api_reference():
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    functions = [name for name in NAMES if not isinstance(getattr(densenet_deploy, name), type)]
    assert [name for name in functions if f"### {name}\n" not in page] == []

"""Every example of a docstring runs; every public name has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import densenet_deploy
from tests.conftest import DIGITS
from tests.serving.web.small_runtime import write_small_runtime

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(densenet_deploy.__path__, "densenet_deploy.")
    if not module.name.endswith("__main__")
)
PUBLIC = [name for name in densenet_deploy.__all__ if name != "__version__"]
SLOW = {
    *("Parity", "benchmark", "build_engine", "cast", "compare", "evaluate", "export", "predict", "prune", "quantize"),
    *("report", "sensitivity", "train", "tune"),
}
"""Public names whose examples take seconds."""


class _Checker(doctest.OutputChecker):
    """Compares outputs with every number replaced: what is measured differs from machine to machine."""

    def check_output(self, want: str, got: str, flags: int) -> bool:
        return super().check_output(_without_numbers(want), _without_numbers(got), flags)


def _without_numbers(text: str) -> str:
    return re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", text)


@pytest.fixture
def folder(digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name, which is the current one."""
    (tmp_path / "digits.onnx").write_bytes(digits_onnx.read_bytes())
    (tmp_path / "densenet_digits.safetensors").symlink_to(DIGITS / "densenet_digits.safetensors")
    (tmp_path / "held_out").symlink_to(DIGITS / "held_out")
    (tmp_path / "calibration").symlink_to(ROOT / "calibration")
    write_small_runtime(tmp_path / "onnxruntime-web", monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(tests: list[doctest.DocTest], names: dict[str, object]) -> int:
    """Run examples with `names`, and return how many there are."""
    runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        test.globs = {**names, **test.globs}
        assert runner.run(test).failed == 0, test.name
    return sum(len(test.examples) for test in tests)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    public = {f"{name}.{one}" for one in PUBLIC}
    found = [test for test in doctest.DocTestFinder().find(module) if not _is_of(test.name, public)]
    _run([test for test in found if test.examples], {"np": np})


def _is_of(name: str, public: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in public)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PUBLIC])
def test_every_public_name_has_an_example_and_all_of_them_run(name):
    value = getattr(densenet_deploy, name)
    names = {one: getattr(densenet_deploy, one) for one in PUBLIC} | {"densenet_deploy": densenet_deploy, "np": np}
    tests = doctest.DocTestFinder().find(value, name, module=False, globs={})
    assert not any(doctest.SKIP in example.options for test in tests for example in test.examples)
    assert _run(tests, names) > 0

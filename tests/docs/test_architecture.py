"""The map of the tree names every place, and no place that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "densenet_deploy"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = set(re.findall(r"`([\w./-]+)`", PAGE))


def entries(folder: Path) -> list[str]:
    """Modules and packages, as the page writes them."""
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    return sorted([*packages, *(path.name for path in folder.glob("*.py") if not path.name.startswith("__"))])


@pytest.mark.parametrize("folder", [PACKAGE, PACKAGE / "workflows"], ids=["package", "workflows"])
def test_every_module_and_package_is_named(folder):
    assert [entry for entry in entries(folder) if entry not in NAMED] == []


def test_every_file_that_is_named_exists():
    folders = ("densenet_deploy", "tests", "docs", "benchmarks", "examples")
    files = {f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.py")}
    named = {name for name in NAMED if name.endswith(".py")}
    assert {name for name in named if not any(path.endswith(f"/{name}") for path in files)} == set()


def test_it_is_read_in_ten_minutes():
    assert len(PAGE.split()) <= 2200

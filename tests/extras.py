"""The extras of the package, resolved by uv for another platform without installing anything."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv") or "uv"
JETSON = "aarch64-manylinux_2_39"


def compiled(extras: Sequence[str], python: str, platform: str = JETSON) -> subprocess.CompletedProcess[str]:
    """Resolve the package with `extras`, from wheels alone."""
    chosen = [word for extra in extras for word in ("--extra", extra)]
    settings = ["--python-platform", platform, "--python-version", python, "--only-binary", ":all:"]
    command = [UV, "pip", "compile", "--no-header", "--no-annotate", *settings, *chosen, "pyproject.toml"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def resolved(extras: Sequence[str], python: str, platform: str = JETSON) -> dict[str, str]:
    """The versions by name; fails with uv's words if there are none."""
    done = compiled(extras, python, platform)
    assert done.returncode == 0, done.stderr
    return dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)


@functools.cache
def _problem() -> str:
    """Why the package index cannot be asked; empty if it can."""
    if shutil.which("uv") is None:
        return "uv is not installed"
    command = [UV, "pip", "compile", "--no-cache", "--quiet", "-"]
    done = subprocess.run(command, input="typer", capture_output=True, text=True)
    return "" if done.returncode == 0 else f"the package index does not answer: {done.stderr.strip()[:200]}"


def require_index() -> None:
    """Skip a test where the package index cannot be asked, with the reason."""
    if problem := _problem():
        pytest.skip(problem)

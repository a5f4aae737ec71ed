"""Case 45: whatever moment a writer is killed or fails at, what stands there is old or new, never between."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from densenet_deploy.errors import ResourceError
from tests.faults.harness import ROOT, run_process
from tests.faults.writers import WRITERS, Writer


def _killed(name: str, folder: Path, kills: int) -> None:
    target = folder / "target"
    target.mkdir()
    ended = run_process([sys.executable, "-m", "tests.faults.writers", name, str(target), str(kills)], ROOT)
    assert (ended.code, ended.out) == (0, "whole\n"), ended.err


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_45_ten_kills_at_random_moments(name: str, tmp_path: Path) -> None:
    _killed(name, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", WRITERS)
def test_45_a_hundred_kills(name: str, tmp_path: Path, times: int) -> None:
    _killed(name, tmp_path, 100 * times)


class Failing:
    """Lets the Nth call of a function of the system fail, as a bad disk does."""

    def __init__(self, function: Callable[..., object], number: int) -> None:
        self.function, self.number, self.calls = function, number, 0

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        if self.calls == self.number:
            raise OSError(5, "Input/output error")
        return self.function(*arguments, **options)


def _write_with_failure(writer: Writer, patch: pytest.MonkeyPatch, step: str, number: int) -> bool:
    """Write version 1 with the Nth `step` failing; return whether one did."""
    owner = {"fsync": os, "replace": Path, "open": Path}[step]
    failing = Failing(getattr(owner, step), number)
    with patch.context() as context:
        # a plain function, so that a method of Path is bound to its path
        context.setattr(owner, step, lambda *arguments, **options: failing(*arguments, **options))
        with contextlib.suppress(ResourceError):
            writer.write(1)
    return failing.calls >= number


@pytest.mark.slow
@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("name", WRITERS)
def test_45_the_nth_step_fails_until_a_run_is_clean(
    name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    while _write_with_failure(_fresh(name, tmp_path / str(failed)), monkeypatch, step, failed + 1):
        folder = tmp_path / str(failed)
        WRITERS[name](folder).check()
        assert not list(folder.rglob("*.tmp")), "nothing unfinished is left"
        failed += 1
    assert failed > 0


def _fresh(name: str, folder: Path) -> Writer:
    folder.mkdir()
    writer = WRITERS[name](folder)
    writer.write(0)
    return writer


@pytest.mark.parametrize("name", WRITERS)
def test_45_a_file_that_may_not_grow_is_a_resource_error(name: str, tmp_path: Path) -> None:
    """The real limit of the system (`ulimit -f`, in KiB): each write past it fails in the middle."""
    code = "import sys; from pathlib import Path; from tests.faults.writers import WRITERS\n"
    code += "from densenet_deploy.errors import ResourceError\n"
    code += "writer = WRITERS[sys.argv[1]](Path(sys.argv[2]))\n"
    code += "try: writer.write(1)\nexcept ResourceError as exc: print(exc)\n"
    ended = run_process(
        ["bash", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-c", code, name, str(tmp_path / "new")], ROOT
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("resource: "), ended.out
    assert list(tmp_path.rglob("*")) == [], "nor is a new folder left"

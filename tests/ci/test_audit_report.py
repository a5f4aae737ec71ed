"""The report of an audit: a package that was not checked, or a missing answer, does not count as clean."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit_report.py"
PACKAGES = """\
# written by a resolver
numpy==2.4.6
    # via densenet-deploy
pillow==13.0.0 ; python_full_version >= '3.11'
typing_extensions==4.16.0
colorama==0.4.6 ; sys_platform == 'no such system'
"""
CLEAN = {
    "dependencies": [
        {"name": "numpy", "version": "2.4.6", "vulns": []},
        {"name": "pillow", "version": "13.0.0", "vulns": []},
        {"name": "typing-extensions", "version": "4.16.0", "vulns": []},
    ],
    "fixes": [],
}
ADVISORY = {"id": "PYSEC-0000-1", "fix_versions": ["13.0.1"], "aliases": ["CVE-0000-1"], "description": "…"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_report", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_report"] = module  # dataclasses look the module up there
    spec.loader.exec_module(module)
    return module


def reported(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], answer: object, stderr: str = ""
) -> tuple[int, str]:
    """Exit code and report for `answer`, given as text or as a value to serialize."""
    paths = [folder / name for name in ("packages.txt", "answer.json", "stderr.txt")]
    texts = (PACKAGES, answer if isinstance(answer, str) else json.dumps(answer), stderr)
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return script.main(*paths), capsys.readouterr().out


def changed(index: int, entry: dict[str, object]) -> dict[str, object]:
    entries = [*CLEAN["dependencies"]]
    entries[index] = entry
    return {"dependencies": entries, "fixes": []}


def test_every_package_is_clean(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reported(script, tmp_path, capsys, CLEAN) == (0, "3 clean, 0 advisories, 0 not checked\n")


def test_an_advisory_is_reported(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = changed(1, {"name": "pillow", "version": "13.0.0", "vulns": [ADVISORY]})
    code, out = reported(script, tmp_path, capsys, answer)
    assert code == 1
    assert "VULNERABLE   pillow 13.0.0: PYSEC-0000-1, CVE-0000-1; fixed in 13.0.1" in out


def test_a_skipped_package_is_not_checked(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = changed(0, {"name": "numpy", "skip_reason": "Dependency not found on the index"})
    code, out = reported(script, tmp_path, capsys, answer)
    assert code == 2
    assert "NOT CHECKED  numpy: Dependency not found on the index" in out
    assert "2 clean" in out


@pytest.mark.parametrize("entry", [{"name": "numpy"}, {"name": "numpy", "version": "2.4.6", "vulns": None}])
def test_an_incomplete_entry_is_not_checked(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: dict[str, object]
) -> None:
    code, out = reported(script, tmp_path, capsys, changed(0, entry))
    assert code == 2
    assert "NOT CHECKED  numpy" in out


def test_a_package_missing_from_the_answer_is_not_checked(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"dependencies": CLEAN["dependencies"][:2], "fixes": []}
    code, out = reported(script, tmp_path, capsys, answer)
    assert code == 2
    assert "NOT CHECKED  typing-extensions" in out


def test_an_advisory_takes_precedence_over_a_missing_answer(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"dependencies": [{"name": "pillow", "version": "13.0.0", "vulns": [ADVISORY]}]}
    code, out = reported(script, tmp_path, capsys, answer)
    assert code == 1
    assert out.count("NOT CHECKED") == 2


@pytest.mark.parametrize("answer", ["", "not JSON", "[]", '{"dependencies": 3}', '{"dependencies": ["numpy"]}'])
def test_an_invalid_answer(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: str) -> None:
    code, out = reported(script, tmp_path, capsys, answer, "Traceback\nConnectionError: name not resolved\n")
    assert code == 3
    assert out.startswith("NOTHING WAS CHECKED")
    assert "ConnectionError: name not resolved" in out


def test_an_answer_without_packages_checks_nothing(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = reported(script, tmp_path, capsys, {"dependencies": []})
    assert code == 3
    assert "NOTHING WAS CHECKED" in out
    assert "0 clean, 0 advisories, 3 not checked" in out

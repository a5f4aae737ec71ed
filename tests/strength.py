"""How much the tests notice and reach: recorded in `strength.json`, shown in docs/concepts/reliability.md.

Which share of small changes to a package they notice, and which lines and branches the ordinary tests reach:

    uv run python -m tests.mutation graph --sample 150 --seed 13 --record
    uv run --with pytest-cov python -m tests.strength

Arguments of the second go on to pytest. Processes that tests start count, if they end by themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

RECORDED: Final = Path(__file__).with_suffix(".json")
_COUNTS: Final = ("covered_lines", "num_statements", "covered_branches", "num_branches")
_SETTINGS: Final = "[run]\nbranch = true\nparallel = true\npatch = subprocess\nsource = densenet_deploy\n"


def record(kind: str, facts: Mapping[str, Any], recorded: Path = RECORDED) -> None:
    """Add facts to those of a kind, in place of what was recorded under the same names, with the day."""
    known = json.loads(recorded.read_text()) if recorded.exists() else {}
    today = datetime.now(UTC).date().isoformat()
    known[kind] = dict(
        sorted((known.get(kind, {}) | {name: {**fact, "date": today} for name, fact in facts.items()}).items())
    )
    recorded.write_text(json.dumps(known, indent=2) + "\n")


def by_package(files: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return what is reached in each package, from the files of coverage.py's JSON report.

    >>> counts = {"covered_lines": 3, "num_statements": 4, "covered_branches": 1, "num_branches": 2}
    >>> by_package({"densenet_deploy/graph/bus.py": {"summary": counts}})["graph"]["covered_lines"]
    3
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_COUNTS, 0))
    for file, facts in files.items():
        _, _, place = file.rpartition("densenet_deploy/")
        package = place.split("/")[0] if "/" in place else "modules at the top"
        for name in _COUNTS:
            found[package][name] += facts["summary"][name]
    return dict(found)


def main() -> int:
    """Run the ordinary tests under coverage.py, and record the result if they pass."""
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder, "settings"), Path(folder, "report.json")
        settings.write_text(f"{_SETTINGS}data_file = {folder}/data\n")
        arguments = ["--cov", f"--cov-config={settings}", f"--cov-report=json:{report}", *sys.argv[1:]]
        status = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
        if status == 0:
            record("coverage", by_package(json.loads(report.read_text())["files"]))
    return status


if __name__ == "__main__":
    sys.exit(main())

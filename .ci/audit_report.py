"""Report the result of pip-audit. A package is clean, vulnerable or not checked; a missing answer is not a clean one.

`python audit_report.py PACKAGES ANSWER STDERR`: the requirements, the JSON of pip-audit, and its standard error. The
exit code is 0 if every package was checked and none is vulnerable, 1 if a package is vulnerable, 2 if a package was not
checked, 3 if no package was checked.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass
class Audit:
    """Packages by result, each with its version and the finding."""

    clean: list[str] = field(default_factory=list)
    vulnerable: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The exit code of the audit."""
        if self.vulnerable:
            return 1
        if not self.clean:
            return 3
        return 2 if self.unchecked else 0


def read_audit(packages: str, answer: str) -> Audit:
    """Sort the packages of a requirements file by the JSON of pip-audit; a package missing there was not checked.

    Raises:
        ValueError: if the answer is not JSON of pip-audit.
    """
    audit, answered = Audit(), set()
    for entry in _entries(answer):
        name = canonicalize_name(str(entry["name"]))
        answered.add(name)
        _sort(audit, name, entry)
    audit.unchecked += [f"{name}: not in the answer" for name in _requested(packages) if name not in answered]
    return audit


def _requested(packages: str) -> list[str]:
    """Return the names in a requirements file, without those for other systems."""
    lines = [line.strip() for line in packages.splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return [canonicalize_name(one.name) for one in requirements if one.marker is None or one.marker.evaluate()]


def _entries(answer: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(answer)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError) as exc:
        raise ValueError("not JSON of pip-audit") from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError("not a list of packages")
    return entries


def _sort(audit: Audit, name: str, entry: dict[str, Any]) -> None:
    """File one entry; without a version and a list of vulnerabilities it does not count as checked."""
    vulns = entry.get("vulns")
    if "skip_reason" in entry or "version" not in entry or not isinstance(vulns, list):
        audit.unchecked.append(f"{name}: {entry.get('skip_reason', 'incomplete entry in the answer')}")
    elif vulns:
        audit.vulnerable += [_vulnerability(name, str(entry["version"]), vuln) for vuln in vulns]
    else:
        audit.clean.append(f"{name} {entry['version']}")


def _vulnerability(name: str, version: str, vuln: dict[str, Any]) -> str:
    names = ", ".join([str(vuln.get("id", "unnamed advisory")), *map(str, vuln.get("aliases", ()))])
    fixes = ", ".join(map(str, vuln.get("fix_versions", ()))) or "no version so far"
    return f"{name} {version}: {names}; fixed in {fixes}"


def main(packages: Path, answer: Path, stderr: Path) -> int:
    """Print the report and return the exit code."""
    try:
        audit = read_audit(packages.read_text(), answer.read_text())
    except ValueError:
        lines = stderr.read_text().strip().splitlines() or ["pip-audit printed nothing"]
        print(f"NOTHING WAS CHECKED: no answer from the advisory service, or no network: {lines[-1][:300]}")
        return 3
    for line in audit.vulnerable:
        print(f"VULNERABLE   {line}")
    for line in audit.unchecked:
        print(f"NOT CHECKED  {line}")
    if audit.exit_code == 3:
        print("NOTHING WAS CHECKED: no answer from the advisory service, or no network; no package counts as clean")
    print(f"{len(audit.clean)} clean, {len(audit.vulnerable)} advisories, {len(audit.unchecked)} not checked")
    return audit.exit_code


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))

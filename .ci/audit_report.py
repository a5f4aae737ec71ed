"""Reads what pip-audit answered, and takes no silence for an answer: a package is clean, vulnerable or not checked.

`python audit_report.py PACKAGES ANSWER SAID`: the requirements that were asked about, pip-audit's JSON, and its
standard error. The exit code is 0 if every package was checked and none is vulnerable, 1 if one is, 2 if one was not
checked, 3 if none was.
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
    """Packages, each with its version and what was found out about it."""

    clean: list[str] = field(default_factory=list)
    vulnerable: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """What the check ends with."""
        if self.vulnerable:
            return 1
        if not self.clean:
            return 3
        return 2 if self.unchecked else 0


def read_audit(packages: str, answer: str) -> Audit:
    """Sort the packages of a requirements file by pip-audit's JSON; what this does not speak of was not checked.

    Raises:
        ValueError: if the answer is none of pip-audit's.
    """
    audit, spoken = Audit(), set()
    for entry in _entries(answer):
        name = canonicalize_name(str(entry["name"]))
        spoken.add(name)
        _sort(audit, name, entry)
    audit.unchecked += [f"{name}: it was not spoken of" for name in _asked(packages) if name not in spoken]
    return audit


def _asked(packages: str) -> list[str]:
    """The names of a requirements file, without those that are for other systems than this."""
    lines = [line.strip() for line in packages.splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return [canonicalize_name(one.name) for one in wanted if one.marker is None or one.marker.evaluate()]


def _entries(answer: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(answer)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError) as exc:
        raise ValueError("no JSON of pip-audit") from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise ValueError("no list of packages")
    return entries


def _sort(audit: Audit, name: str, entry: dict[str, Any]) -> None:
    """An entry without a version or a list of vulnerabilities is no answer, whatever else it says."""
    vulns = entry.get("vulns")
    if "skip_reason" in entry or "version" not in entry or not isinstance(vulns, list):
        audit.unchecked.append(f"{name}: {entry.get('skip_reason', 'there is no answer in its entry')}")
    elif vulns:
        audit.vulnerable += [_vulnerability(name, str(entry["version"]), vuln) for vuln in vulns]
    else:
        audit.clean.append(f"{name} {entry['version']}")


def _vulnerability(name: str, version: str, vuln: dict[str, Any]) -> str:
    names = ", ".join([str(vuln.get("id", "an advisory without a name")), *map(str, vuln.get("aliases", ()))])
    fixes = ", ".join(map(str, vuln.get("fix_versions", ()))) or "no version yet"
    return f"{name} {version}: {names}; fixed in {fixes}"


def main(packages: Path, answer: Path, said: Path) -> int:
    """Print the report and return the exit code."""
    try:
        audit = read_audit(packages.read_text(), answer.read_text())
    except ValueError:
        lines = said.read_text().strip().splitlines() or ["pip-audit said nothing"]
        print(f"NOTHING WAS CHECKED: no answer of the advisory service, or no network: {lines[-1][:300]}")
        return 3
    for line in audit.vulnerable:
        print(f"VULNERABLE   {line}")
    for line in audit.unchecked:
        print(f"NOT CHECKED  {line}")
    if audit.exit_code == 3:
        print("NOTHING WAS CHECKED: no advisory service or no network answered, so that no package counts as clean")
    print(f"{len(audit.clean)} clean, {len(audit.vulnerable)} advisories, {len(audit.unchecked)} not checked")
    return audit.exit_code


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))

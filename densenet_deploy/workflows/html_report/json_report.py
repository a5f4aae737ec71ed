"""The JSON that a command printed, whose values are checked for their type before they are believed."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densenet_deploy.errors import DataError
from densenet_deploy.workflows.plot.pareto_points import Facts, read_report


@dataclass(frozen=True)
class JsonReport:
    """An object inside the JSON at `path`, which `command` printed; `where` is how it is reached.

    Every reader raises a DataError that names the value and what was wanted in its place.
    """

    path: Path
    command: str
    facts: Facts
    where: str = ""

    @classmethod
    def read(cls, path: Path, command: str, *needed: str) -> JsonReport:
        """Read the file.

        Raises:
            DataError: if it holds no JSON object, or one without the keys `needed`.
        """
        report = cls(path, command, read_report(path))
        missing = [key for key in needed if key not in report.facts]
        if missing:
            raise report.error(f"it has no {missing[0]}")
        return report

    def error(self, why: str) -> DataError:
        """Return the error that says why this is no report of the command."""
        fix = f"give what {self.command} printed with --json"
        return DataError(self.path, f"is no report of {self.command}: {why}", fix)

    def number(self, key: str) -> float:
        number = self.known_number(key)
        if number is None:
            raise self._wrong(key, "a number")
        return number

    def known_number(self, key: str) -> float | None:
        """The number, or None where it is null or missing."""
        value = self.facts.get(key)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """The list of numbers; empty where it is null or missing."""
        values = self._list(key)
        return tuple(JsonReport(self.path, self.command, {key: value}, self.where).number(key) for value in values)

    def text(self, key: str) -> str:
        value = self.facts.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def known_text(self, key: str) -> str:
        """The text; empty where it is null or missing."""
        return "" if self.facts.get(key) is None else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """The list of texts; empty where it is null or missing."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of texts")
        return tuple(values)

    def flag(self, key: str) -> bool:
        value = self.facts.get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def part(self, key: str) -> JsonReport:
        part = self.known_part(key)
        if part is None:
            raise self._wrong(key, "an object")
        return part

    def known_part(self, key: str) -> JsonReport | None:
        """The object, or None where it is null or missing."""
        value = self.facts.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return JsonReport(self.path, self.command, value, f"{self.where}{key}.")

    def parts(self, key: str) -> tuple[JsonReport, ...]:
        """The list of objects; empty where it is null or missing."""
        values = self._list(key)
        if not all(isinstance(value, dict) for value in values):
            raise self._wrong(key, "a list of objects")
        return tuple(
            JsonReport(self.path, self.command, value, f"{self.where}{key}[{place}].")
            for place, value in enumerate(values)
        )

    def _list(self, key: str) -> list[Any]:
        value = self.facts.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def _wrong(self, key: str, wanted: str) -> DataError:
        return self.error(f"{self.where}{key} is {reprlib.repr(self.facts.get(key))}, not {wanted}")

"""What a workflow returns beside its model: facts for programs, lines for people, HTML for a notebook.

A report is a frozen dataclass; its fields are the keys of its JSON, and it reads that JSON back::

    @dataclass(frozen=True, kw_only=True)
    class SimplifyReport(TimedReport):
        kind: ClassVar[str] = "simplify"
        onnx: Path | None
        nodes_before: int
        def to_text(self) -> str: ...
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from densenet_deploy.artifacts import os_errors_about, require_file
from densenet_deploy.errors import DataError, DensenetDeployError, printable
from densenet_deploy.records import fields_to_plain, from_plain, parse_json, to_plain, write_json

COMMAND_LINE: Final[ContextVar[tuple[str, ...]]] = ContextVar("COMMAND_LINE", default=())
"""The command line that is being run; empty where Python calls the workflows."""

_LABEL_WIDTH: Final = 12
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Report:
    """Facts about what was done.

    Attributes:
        notes: remarks, one line each: what was assumed, skipped or not measured.
        argv: the command line that made it; empty where Python did.
    """

    kind: ClassVar[str]
    derived: ClassVar[tuple[str, ...]] = ()
    """Properties that the JSON shows beside the fields."""

    notes: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report with plain types, ready for `json.dumps`."""
        facts = fields_to_plain(self) | {name: to_plain(getattr(self, name)) for name in self.derived}
        last = {name: facts.pop(name) for name in ("stages", "notes", "argv") if name in facts}
        return facts | {name: value for name, value in last.items() if value or name != "argv"}

    @classmethod
    def from_json(cls, facts: object, origin: object = "report") -> Self:
        """Read what `to_json` returned; `origin` is where it came from, as errors name it.

        Raises:
            DataError: naming the value that is missing or of another type.
        """

        def fail(where: str, why: str) -> DensenetDeployError:
            found = f"{where} {why}".strip()
            return DataError(origin, f"is not a {cls.kind} report: {found}", f"give the output of {cls.kind} --json")

        return from_plain(cls, facts, fail=fail)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that holds the JSON.

        Raises:
            InputError: if the file does not exist.
            DataError: if it does not hold JSON, or not that of this report.
        """
        return cls.from_json(read_json(path), path)

    def to_file(self, header: Mapping[str, object] | None = None) -> bytes:
        """Return the JSON as the content of a file, after `header`, with the command line that is being run."""
        line = COMMAND_LINE.get()
        facts = {**(header or {}), **self.to_json(), **({"argv": line} if line else {})}
        return f"{write_json(facts, indent=2)}\n".encode()

    def to_text(self) -> str:
        """Return lines for people."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Return the text for a notebook, with the notes below it."""
        notes = "".join(f"<div><em>note: {html.escape(note)}</em></div>" for note in self.notes)
        return f"<pre>{html.escape(self.to_text())}</pre>{notes}"


@dataclass(frozen=True, kw_only=True)
class TimedReport(Report):
    """A report whose work was done in named stages: `stages` maps each to its seconds, `seconds` is their sum."""

    derived: ClassVar[tuple[str, ...]] = ("seconds",)

    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The sum of the stages."""
        return sum(self.stages.values())

    def stage_lines(self) -> list[str]:
        """Return the line of text about the stages, if any were timed."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        return [line("seconds", f"{self.seconds:.1f} ({stages})")] if stages else []


def line(label: str, value: object) -> str:
    """Return a line of a report: the label in a column of its own, then the value.

    >>> line("recipe", "openvino")
    'recipe      openvino'
    """
    return f"{label:{_LABEL_WIDTH}}{value}"


def wrote(path: Path | None) -> list[str]:
    """Return the line that names the file that was written; nothing where the result stayed in memory."""
    return [] if path is None else [line("wrote", printable(path))]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table with aligned columns; those at the places `right` are aligned to the right."""
    cells = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    forms = [f"{{:{'>' if place in right else '<'}{width}}}" for place, width in enumerate(widths)]
    return ["  ".join(form.format(cell) for form, cell in zip(forms, row, strict=True)).rstrip() for row in cells]


def mib(size_bytes: float) -> str:
    """Return a size in mebibytes.

    >>> mib(3.5 * 2**20)
    '3.5 MiB'
    """
    return f"{size_bytes / _MIB:.1f} MiB"


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file that a command wrote.

    Raises:
        InputError: if the file does not exist.
        DataError: if it does not hold a JSON object.
    """
    require_file(path)
    fix = "give the output of a command with --json"
    with os_errors_about(path):
        data = path.read_bytes()
    try:
        facts = parse_json(data)
    except ValueError as exc:
        raise DataError(path, "is not JSON", fix) from exc
    if not isinstance(facts, dict):
        raise DataError(path, "is not a JSON object", fix)
    return facts

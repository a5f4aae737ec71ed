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

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.artifacts import os_errors_about, require_file
from densenet_deploy.errors import DataError, DensenetDeployError, printable
from densenet_deploy.notebook import html_table, notes_html, preformatted
from densenet_deploy.records import fields_to_plain, from_plain, parse_json, to_plain, write_json

COMMAND_LINE: Final[ContextVar[tuple[str, ...]]] = ContextVar("COMMAND_LINE", default=())
"""The command line that is being run; empty where Python calls the workflows."""

UNKNOWN: Final = "–"
_LABEL_WIDTH: Final = 12
_MIB: Final = 2**20

T = TypeVar("T")


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

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        setattr(cls, "_repr_pretty_", Report._repr_pretty_)  # noqa: B010 - IPython asks the class before its `__repr__`

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
            return DataError(origin, f"is not a report of {cls.kind}: {found}", f"give the output of {cls.kind} --json")

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

    def tables(self) -> list[Table]:
        """Return the tables of the text, which a notebook shows as such."""
        return []

    def __str__(self) -> str:
        return self.to_text()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - as IPython calls it
        """Let IPython show the text."""
        printer.text(self.to_text())

    def _repr_html_(self) -> str:
        """Return the text for a notebook, with tables as tables and the notes below, in the notebook's own colours."""
        text, tables = self.to_text(), self.tables()
        for shown in tables:
            text = text.replace("\n".join(shown.lines()), "").replace("\n\n\n", "\n")
        parts = [preformatted(text), *(shown.to_html() for shown in tables)]
        return "".join([*parts, notes_html(self.notes)])


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


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by (None: last), and how it looks.

    `span` draws a value with its interval on an axis that all rows share: low, middle and high as fractions of it.
    """

    text: str
    key: float | str | None = None
    span: tuple[float, float, float] | None = None
    tone: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings, for terminals, notebooks and pages; `folded` hides them behind that line on a page."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: they are aligned to the right, and sorted as numbers."""
        return [not any(isinstance(row[place].key, str) for row in self.rows) for place in range(len(self.headings))]

    def without_empty_columns(self) -> Table:
        """Return it without columns of which no cell has a value."""
        kept = [place for place in range(len(self.headings)) if any(row[place].text != UNKNOWN for row in self.rows)]
        rows = [[row[place] for place in kept] for row in self.rows]
        return Table(self.caption, [self.headings[place] for place in kept], rows, self.folded)

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        right = [place for place, is_number in enumerate(self.numeric) if is_number]
        return table(self.headings, ([cell.text for cell in row] for row in self.rows), right)

    def to_html(self) -> str:
        """Return it as plain HTML for a notebook, in whose colours it is shown."""
        right = [place for place, is_number in enumerate(self.numeric) if is_number]
        return html_table(self.headings, ([cell.text for cell in row] for row in self.rows), right)


def table_of(caption: str, rows: Sequence[T], columns: Mapping[str, Callable[[T], Cell]], folded: str = "") -> Table:
    """Return a table with a row for each of `rows`; `columns` maps a heading to what makes its cells."""
    return Table(caption, list(columns), [[cell(row) for cell in columns.values()] for row in rows], folded)


def text_cell(value: object, *, code: bool = False) -> Cell:
    """Return a cell that is sorted by its text; a dash for nothing."""
    shown = str(value or UNKNOWN)
    return Cell(shown, shown.lower(), code=code)


def number_cell(value: float | None, form: Callable[[float], str] = "{:,.0f}".format) -> Cell:
    """Return a cell that shows `form(value)`; a dash for None."""
    return Cell(UNKNOWN, tone="quiet") if value is None else Cell(form(value), value)


def time_cell(median: float, interval: tuple[float, float] | None, longest: float | None = None) -> Cell:
    """Return a cell with a time in ms and its interval, which is drawn too, on an axis from 0 to `longest`."""
    low, high = interval or (median, median)
    shown = milliseconds(median) + (f" [{milliseconds(low)}, {milliseconds(high)}]" if interval else "")
    return Cell(shown, median, None if longest is None else (low / longest, median / longest, high / longest))


def mebibytes(size_bytes: float) -> str:
    """Return a size in mebibytes, without the unit."""
    return f"{size_bytes / _MIB:,.1f}"


def mib(size_bytes: float) -> str:
    """Return a size in mebibytes.

    >>> mib(3.5 * 2**20)
    '3.5 MiB'
    """
    return f"{mebibytes(size_bytes)} MiB"


def percent(value: float | None) -> str:
    """Return a fraction in percent, or `–` where it is undefined.

    >>> percent(0.5), percent(None)
    ('50.00%', '–')
    """
    return UNKNOWN if value is None else f"{value:.2%}"


def number(value: float | None) -> str:
    """Return a metric to four digits, or `–` where it is undefined.

    >>> number(0.81234), number(61.527), number(None)
    ('0.8123', '61.53', '–')
    """
    return UNKNOWN if value is None else f"{value:.4g}"


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

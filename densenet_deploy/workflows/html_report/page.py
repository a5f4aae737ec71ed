"""A page as plain values, and as HTML: one file that holds its style, script and figures, and loads nothing.

Values that come from files need no care: everything shown goes through `printable` (control characters escaped, long
text cut) and is then escaped by the template engine. The page forbids itself to load anything and to run any script
but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar
from xml.etree import ElementTree as ET  # only what matplotlib wrote here is parsed

from densenet_deploy.analysis.plots.style import milliseconds
from densenet_deploy.errors import printable
from densenet_deploy.packages import require_packages

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MOST_ROWS: Final = 500
UNKNOWN: Final = "–"
PROGRAM: Final = "densenet-deploy"
_MIB: Final = 2**20
_LONGEST_TEXT: Final = 400
_WIDE_TEXT: Final = 52  # characters; the column of a longer cell need not be as wide as the text
_LONGEST_COMMAND: Final = 4000
_DROPPED: Final = ("metadata", "style")
_NAMESPACE: Final = re.compile(r"\{[^}]+\}")
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by (None: last), and how it looks.

    `span` draws a value with its interval on an axis that all rows share: low, middle and high as fractions of it.
    """

    text: str
    key: float | str | None = None
    span: tuple[float, float, float] | None = None
    tone: Literal["", "good", "bad", "quiet"] = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; `folded` hides them behind that line until it is opened."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: they are aligned to the right, and sorted as numbers."""
        return [not any(isinstance(row[place].key, str) for row in self.rows) for place in range(len(self.headings))]


@dataclass(frozen=True)
class Facts:
    """Names and values, under an optional title."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG file with its caption; `name` is unique on the page."""

    kind: ClassVar[str] = "figure"
    name: str
    svg: bytes
    caption: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, and a sentence about them."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]
    lead: str = ""


@dataclass(frozen=True)
class Remarks:
    """Sentences about what is uncertain or missing."""

    kind: ClassVar[str] = "remarks"
    sentences: Sequence[str]


Block = Table | Facts | Figure | Commands | Remarks


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is its address within it, `lead` introduces it."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """The top of the page.

    Attributes:
        model: the file to ship; empty where none is recommended.
        figures: the few numbers that matter: name, value, small print.
    """

    title: str
    model: str
    reasons: Sequence[str]
    figures: Sequence[tuple[str, str, str]] = ()
    cautions: Sequence[str] = ()
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole page; `description` identifies it in the file, `made_by` is its last line."""

    title: str
    description: str
    headline: Headline
    sections: Sequence[Section]
    made_by: str


def text_cell(value: object, *, code: bool = False) -> Cell:
    """Return a cell that is sorted by its text; a dash for nothing."""
    shown = str(value or UNKNOWN)
    return Cell(shown, shown.lower(), code=code)


def number_cell(value: float | None, form: Callable[[float], str] = "{:,.0f}".format) -> Cell:
    """Return a cell that shows `form(value)`; a dash for None."""
    return Cell(UNKNOWN, tone="quiet") if value is None else Cell(form(value), value)


def file_cell(path: str) -> Cell:
    """Return a cell with the file name without its folder; no two models share it."""
    return text_cell(path.rpartition("/")[2])


def percent(value: float) -> str:
    """Return a fraction in percent.

    >>> percent(0.99166)
    '99.17 %'
    """
    return f"{value:.2%}".replace("%", " %")


def mib(value: float) -> str:
    """Return bytes in mebibytes, without the unit."""
    return f"{value / _MIB:,.1f}"


def decibels(value: float) -> str:
    """Return decibels with one decimal place."""
    return f"{value:.1f}"


def time_cell(median: float | None, interval: tuple[float, float] | None, longest: float) -> Cell:
    """Return a cell with a time and its interval, which is drawn too, on an axis from 0 to `longest`."""
    if median is None:
        return number_cell(None)
    low, high = interval or (median, median)
    shown = milliseconds(median) + (f" [{milliseconds(low)}, {milliseconds(high)}]" if interval else "")
    return Cell(shown, median, (low / longest, median / longest, high / longest))


def axis_end(spans: Iterable[tuple[float | None, tuple[float, float] | None]]) -> float:
    """Return the end of an axis that holds all of these times."""
    return max((interval[1] if interval else median or 0.0 for median, interval in spans), default=0.0) or 1.0


def table(caption: str, rows: Sequence[T], columns: Mapping[str, Callable[[T], Cell]], folded: str = "") -> Table:
    """Return a table with a row for each of `rows`; `columns` maps a heading to what makes its cells."""
    return Table(caption, list(columns), [[cell(row) for cell in columns.values()] for row in rows], folded)


def remarks(sentences: Iterable[str]) -> list[Block]:
    """Return the sentences as a block, or no block if there are none."""
    listed = list(sentences)
    return [Remarks(listed)] if listed else []


def made_by(command: str, *arguments: object, missing: str = "There are no data for this section yet") -> Commands:
    """Say what is `missing`, which command makes it, and which option takes its output."""
    line = shlex.join([PROGRAM, command, *map(str, arguments), "--json"])
    lead = f"{missing}. This command makes them; give its output with --{command} {command}.json."
    return Commands([f"{line} > {command}.json"], lead)


def render(page: Page) -> bytes:
    """Return `page` as UTF-8 HTML; equal pages give equal bytes.

    Raises:
        MissingPackageError: if Jinja2 is not installed.
    """
    require_packages("report", "jinja2")
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    facts: dict[str, object] = {
        "page": page,
        "style": Markup(style),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "most_rows": MOST_ROWS,
        "wide": _WIDE_TEXT,
    }
    text = _environment().get_template("page.html.j2").render(facts)
    return text.encode("utf-8", "backslashreplace")


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_part),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"svg": _svg, "breakable": _breakable, "prose": _prose, "shell": _shell, "percent": _percent}
    return environment


def _shown(value: Any) -> Any:
    """What the template prints: its own markup unchanged, anything else as one line of bounded length."""
    return value if hasattr(value, "__html__") else printable(value, _LONGEST_TEXT)


def _breakable(text: str) -> Markup:
    """Let long names of files and layers break after their dots."""
    from markupsafe import Markup, escape

    return escape(_shown(text)).replace(".", Markup(".<wbr>"))


def _prose(text: str) -> Markup:
    """Keep command options in one line: a browser would break them after their hyphens."""
    from markupsafe import Markup

    return Markup(" ").join(_whole(word) if word.startswith("-") else word for word in _shown(text).split(" "))


def _shell(line: str) -> Markup:
    """Let a command break at its spaces only."""
    from markupsafe import Markup

    return Markup(" ").join(_whole(word) for word in printable(line, _LONGEST_COMMAND).split(" "))


def _whole(word: str) -> Markup:
    from markupsafe import Markup

    return Markup('<span class="whole">{}</span>').format(word) if "-" in word else Markup("{}").format(word)


def _percent(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}"


def _svg(figure: Figure) -> Markup:
    """Return the figure as an `svg` element: no prolog, metadata or namespaces, and no names that clash."""
    from markupsafe import Markup

    root = ET.fromstring(figure.svg)  # noqa: S314 - ours
    for parent in list(root.iter()):
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {_NAMESPACE.sub("", key): _renamed(key, text, figure.name) for key, text in element.items()}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": printable(figure.caption, _LONGEST_TEXT)}
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=False))  # noqa: S704 - ours, serialized


def _renamed(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key.endswith("href") and text.startswith("#"):
        return f"#{name}-{text[1:]}"
    return _REFERENCE.sub(rf"url(#{name}-\1)", text)


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")

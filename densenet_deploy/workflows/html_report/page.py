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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar, Final
from xml.etree import ElementTree as ET  # only what matplotlib wrote here is parsed

from densenet_deploy.errors import printable
from densenet_deploy.packages import require_packages
from densenet_deploy.reports import Cell, Table, text_cell

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

DECISION: Final = "densenet-deploy-decision"
"""The name of the `meta` element in which a page keeps its decision for programs."""

MOST_ROWS: Final = 500
PROGRAM: Final = "densenet-deploy"
_LONGEST_TEXT: Final = 400
_WIDE_TEXT: Final = 52  # characters; the column of a longer cell need not be as wide as the text
_LONGEST_COMMAND: Final = 4000
_DROPPED: Final = ("metadata", "style")
_IMAGE: Final = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")
_NAMESPACE: Final = re.compile(r"\{[^}]+\}")
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")


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


@dataclass(frozen=True)
class ImageCard:
    """A small image as a `data:` address (empty where the file is not here), and lines of text below it."""

    data: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Images:
    """Images side by side, under a sentence about them."""

    kind: ClassVar[str] = "images"
    lead: str
    cards: Sequence[ImageCard]


Block = Table | Facts | Figure | Commands | Remarks | Images


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
        lead: what is gained and lost by it.
        answers: to the questions that a decision raises: question, answer, small print.
        figures: shown beside the answers.
        commands: that run it.
    """

    title: str
    model: str
    lead: str
    reasons: Sequence[str]
    answers: Sequence[tuple[str, str, str]] = ()
    figures: Sequence[Figure] = ()
    cautions: Sequence[str] = ()
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole page; `description` identifies it, `decision` is JSON for `report --against`, `made_by` ends it."""

    title: str
    description: str
    headline: Headline
    sections: Sequence[Section]
    made_by: str
    decision: str = ""


def file_cell(path: str) -> Cell:
    """Return a cell with the file name without its folder; no two models share it."""
    return text_cell(path.rpartition("/")[2])


def remarks(sentences: Iterable[str]) -> list[Block]:
    """Return the sentences as a block, or no block if there are none."""
    listed = list(sentences)
    return [Remarks(listed)] if listed else []


def made_by(what: str, command: str, *arguments: object) -> tuple[str, str]:
    """Return what is missing with the option that takes it, and the command that makes it."""
    line = shlex.join([PROGRAM, command, *map(str, arguments), "--json"])
    return f"{what[0].upper()}{what[1:]}: --{command} {command}.json", f"{line} > {command}.json"


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
        "decision_name": DECISION,
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
    environment.filters |= {
        "svg": _svg,
        "breakable": _breakable,
        "prose": _prose,
        "shell": _shell,
        "percent": _percent,
        "address": _address,
        "whole_text": _whole_text,
    }
    return environment


def _shown(value: Any) -> Any:
    """What the template prints: its own markup unchanged, anything else as one line of bounded length."""
    return value if hasattr(value, "__html__") else printable(value, _LONGEST_TEXT)


def _breakable(text: str) -> Markup:
    """Let long names of files and layers break after their dots and slashes."""
    from markupsafe import Markup, escape

    return escape(_shown(text)).replace(".", Markup(".<wbr>")).replace("/", Markup("/<wbr>"))


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


def _address(data: str) -> Markup:
    """Return the address of an image that we encoded ourselves."""
    from markupsafe import Markup, escape

    if _IMAGE.fullmatch(data) is None:
        raise ValueError("an image has to be data")
    return Markup(escape(data))  # noqa: S704 - escaped


def _whole_text(text: str) -> Markup:
    """Escape JSON, of which no part may be left out."""
    from markupsafe import Markup, escape

    return Markup(escape(text))  # noqa: S704 - escaped


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

"""What a page shows, as plain values: a decision, then sections of tables, facts, figures and commands.

Nothing here is HTML. Whoever fills a page in need not escape anything: `render` does, and cuts what is too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Span:
    """A value and its interval on an axis that all rows share; `low`, `middle`, `high` are fractions of its length."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Cell:
    """What is read, what it is sorted by (None: there is nothing to sort, and it goes last), and how it looks."""

    text: str
    key: float | str | None = None
    span: Span | None = None
    tone: Tone = ""
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A heading; numbers stand at the right and are sorted as numbers."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under `columns`; `folded` hides them behind that line until it is opened."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and what belongs to each, under an optional title."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure as the bytes of an SVG file, and the sentence that says what is seen."""

    kind: ClassVar[str] = "figure"
    name: str
    svg: bytes
    caption: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, under the sentence that says what they do."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]
    lead: str = ""


@dataclass(frozen=True)
class Remarks:
    """Sentences that make figures less than certain, or say what is missing."""

    kind: ClassVar[str] = "remarks"
    sentences: Sequence[str]


Block = Table | Facts | Figure | Commands | Remarks


@dataclass(frozen=True)
class Section:
    """A part of the page: `anchor` is its address within it, `lead` a sentence on what it is good for."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Decision:
    """What to ship and why: a headline, sentences, a few figures (name, value, small print), and what speaks against.

    `model` is the file to ship; empty where nothing can be recommended.
    """

    headline: str
    model: str
    reasons: Sequence[str]
    figures: Sequence[tuple[str, str, str]] = ()
    cautions: Sequence[str] = ()
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole page; `description` is written into it and says whose it is, `made_by` is its last line."""

    title: str
    description: str
    decision: Decision
    sections: Sequence[Section]
    made_by: str
